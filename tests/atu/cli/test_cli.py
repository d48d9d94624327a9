"""The `atu` command on a tiny image GAN: every command, every error, and what --help costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import click
import pytest
import torch

from atu.cli import main as cli
from atu.cli.audit import _print as print_audit
from atu.cli.train import _print as print_classifier
from atu.data import images
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.rule import class_rule
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import progress
from atu.support.signals import Terminated
from examples.classifiers import train_classifier

QUICK = """
[feedback]
pool = 300
[adapt]
steps = 4
fisher.n = 8
adversarial.augment = ""
[repel]
steps = 6
check_every = 3
check_samples = 100
guide_steps = 2
"""


def left_heavy(x):
    """Whether the left half of images [N, 1, 8, 8] is brighter than the right one."""
    return x[..., :4].mean(dim=(1, 2, 3)) > x[..., 4:].mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GAN of 8 x 8 images, a classifier of its samples (left, right), negatives as files, quick settings."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    gan = GAN(MLPGenerator(4, [1, 8, 8], (16,), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))
    gan.save(folder / "gan.safetensors")
    x = gan.sample(512)
    labels = left_heavy(x).long()
    module, _ = train_classifier(x, labels, (x[:64], labels[:64]), epochs=3)
    Classifier(module, ["right", "left"]).save(folder / "judge.safetensors")
    (folder / "quick.toml").write_text(QUICK)
    return folder


def run(*arguments):
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--debug", *map(str, arguments)] if "--debug" in arguments else list(map(str, arguments)))
    return exit_.value.code


def judge(folder, name="left"):
    return ["--oracle", folder / "judge.safetensors", "--class", name]


def test_help_imports_nothing_heavy():
    code = "import sys; from atu.cli.main import main; main(['unlearn', '--help'])"
    check = f"""
import atexit, sys
atexit.register(lambda: print("HEAVY", [m for m in ("torch", "numpy", "matplotlib", "rich") if m in sys.modules]))
{code}
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "--negatives" in done.stdout
    assert "HEAVY []" in done.stdout


def commands(group, path=()):
    """(words, command) of every command below a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_option_and_argument_has_help(capsys):
    found = list(commands(cli.cli))
    assert len(found) > 12
    for words, command in found:
        assert run(*words, "--help") == 0
        assert capsys.readouterr().out.startswith(f"Usage: atu {' '.join(words)} ")
        for param in command.params:
            if isinstance(param, click.Argument):
                assert re.search(rf"\b{param.name.upper()}\b[^:]*: ", command.help), (words, param.name)
            elif not param.hidden:
                assert param.help, (words, param.name)


def test_one_spelling_for_one_thing():
    """An option of one name takes one kind of value, and is repeated or not, in every command."""
    kinds = {}
    for words, command in commands(cli.cli):
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                kinds.setdefault(param.opts[0], {}).setdefault(param.type.name, []).append(" ".join(words))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


def test_former_spellings_that_still_work(folder, tmp_path):
    assert run("sample", folder / "gan.safetensors", "--n", 2, "--out", tmp_path / "a") == 0
    assert len(list((tmp_path / "a").glob("*.png"))) == 2


def test_version(capsys):
    assert run("--version") == 0
    assert "0." in capsys.readouterr().out


def test_sample_writes_images(folder, tmp_path, capsys):
    assert run("sample", folder / "gan.safetensors", "--samples", 7, "--out", tmp_path / "a") == 0
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [
        *("samples.json",),
        *(f"seed0-{i:06d}.png" for i in range(7)),
    ]
    assert run("sample", folder / "gan.safetensors", "--samples", 7, "--grid", "--out", tmp_path / "b") == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a"), str(tmp_path / "b" / "seed0-grid.png")]


@pytest.mark.parametrize("shape", [[2], [2, 8, 8], [5, 8, 8]])
def test_samples_that_are_no_pictures_are_told_before_they_are_drawn(shape, tmp_path, capsys, monkeypatch):
    ckpt = GAN(MLPGenerator(4, shape, (8,))).save(tmp_path / "gan.safetensors")
    monkeypatch.setattr(progress, "track", lambda *_: pytest.fail("it draws"))
    line = error(capsys, "sample", ckpt, "--out", tmp_path / "out")
    assert line == f"Error: CKPT: expected a GAN of images [1, 3 or 4, H, W], got one of samples {shape}"
    assert not (tmp_path / "out").exists()


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_samples_of_two_seeds_share_a_folder_and_others_are_refused(folder, tmp_path, capsys):
    command = ["sample", folder / "gan.safetensors", "--samples", 5, "--quiet", "--out", tmp_path]
    assert run(*command) == 0
    first = pictures(tmp_path)
    assert run(*command) == 0  # the same again: the same pictures
    assert pictures(tmp_path) == first
    assert run(*command, "--seed", 3) == 0
    both = pictures(tmp_path)
    assert first.items() < both.items() and sum(name.startswith("seed3-") for name in both) == 5
    assert "holds samples of another kind (oracle, classes)" in error(capsys, *command, *judge(folder))
    assert "holds 5 samples of seed 3 already" in error(capsys, *command, "--seed", 3, "--samples", 7)
    (tmp_path / "samples.json").unlink()
    assert "seed0-000000.png is there already" in error(capsys, *command)
    assert pictures(tmp_path) == both


def test_an_out_that_cannot_be_written_is_found_before_loading(tmp_path, capsys):
    """Under a file, where nobody can write, root included; the checkpoint named is not even looked for."""
    (tmp_path / "file").write_text("")
    out = ["--out", tmp_path / "file" / "out"]
    for command in (
        ["sample", "nowhere.pt"],
        ["unlearn", "nowhere.pt", "--negatives", tmp_path],
        ["eval", "nowhere.pt", "nowhere.pt", *judge(tmp_path)],
        ["audit", "nowhere.pt", "nowhere.pt", *judge(tmp_path)],
        ["release", tmp_path],
        *(["demo", "mnist"], ["train-classifier", "."]),
    ):
        assert "out cannot be written (Not a directory)" in error(capsys, *command, *out), command
    line = error(capsys, "export", "nowhere.pt", tmp_path / "file" / "gan.pt")
    assert line.startswith("Error: TARGET: ") and "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reports_of_others_are_left_alone(folder, tmp_path, capsys):
    gan = folder / "gan.safetensors"
    (tmp_path / "report.html").write_text("mine")
    command = ["eval", gan, gan, *judge(folder), "--samples", 50, "--out", tmp_path]
    assert "report.html was not written by atu" in error(capsys, *command)
    (tmp_path / "report.html").unlink()
    assert run(*command) == 0 and run(*command) == 0
    (tmp_path / "run.json").write_text("{}")
    assert "is the folder of a run" in error(capsys, *command)


def test_sample_of_a_class_is_what_the_oracle_calls_it(folder, tmp_path):
    from atu.data.samples import as_samples

    out = tmp_path / "left"
    assert run("sample", folder / "gan.safetensors", "--samples", 9, *judge(folder), "--out", out) == 0
    x = as_samples(out, (1, 8, 8), (-1.0, 1.0), "images").tensor
    assert len(x) == 9
    # Rounded to 8 bits, an image at the edge may change sides.
    assert int(class_rule(Classifier.load(folder / "judge.safetensors"), ["left"], (-1.0, 1.0))(x).sum()) >= 8


def test_unlearn_with_an_oracle_then_eval(folder, tmp_path, capsys):
    gan, negatives, out = folder / "gan.safetensors", tmp_path / "negatives", tmp_path / "run"
    assert run("sample", gan, "--samples", 12, *judge(folder), "--out", negatives) == 0
    arguments = ["unlearn", gan, "--negatives", negatives, *judge(folder), "--config", folder / "quick.toml"]
    assert run(*arguments, "--samples", 200, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "Unlearning class left" in printed
    assert str(out / "report.html") in printed
    data = json.loads((out / "report.json").read_text())
    assert data["n"] == 200
    assert data["negatives_before"] > 0
    assert data["config"]["repel"]["steps"] == 6
    assert data["seconds"] > 0
    assert GAN.load(out / "result.safetensors").sample(2).shape == (2, 1, 8, 8)
    again = ["eval", gan, out, *judge(folder), "--samples", 200]  # the run folder stands for its result
    assert run(*again, "--real", negatives, "--quiet", "--out", tmp_path / "eval") == 0
    evaluated = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert evaluated["models"]["before"]["fid_cls"] is None
    assert evaluated["n"] == 200
    assert set(data["sha256"]) == {"before", "after", "result", "negatives"}
    assert evaluated["sha256"]["before"] == data["sha256"]["before"]
    check_release(out, tmp_path / "released", capsys)


def test_what_is_required_decides_the_exit_code(folder, tmp_path, capsys):
    gan = folder / "gan.safetensors"
    same = ["eval", gan, gan, *judge(folder), "--samples", 100, "--subject", "left bars", "--quiet", "--out", tmp_path]
    assert run(*same, "--require", 0) == 0
    assert run(*same, "--require", 0.5) == 1
    assert "0.5 % were required to be gone" in capsys.readouterr().err
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["subject"], data["pul"]) == ("left bars", 0.0)


def test_eval_and_audit_by_a_probe_of_negatives(folder, tmp_path, capsys):
    gan, negatives = folder / "gan.safetensors", tmp_path / "negatives"
    assert run("sample", gan, "--samples", 40, *judge(folder), "--out", negatives) == 0
    by_probe = ["--negatives", negatives, "--quiet", "--out", tmp_path / "probe"]
    assert run("eval", gan, gan, *by_probe, "--samples", 300) == 0
    data = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert (data["subject"], data["features"], data["pul"]) == ("what negatives shows", "discriminator", 0.0)
    assert data["kept"]["frechet"] == data["kept"]["frechet_chance"]
    small = ["--starts", 3, "--steps", 2, "--images", 8, "--samples", 200]
    assert run("audit", gan, gan, *by_probe, *small) == 0
    found = json.loads((tmp_path / "probe" / "audit.json").read_text())
    assert (found["judges"], found["searched"]) == (["probe"], "probe")
    assert found["parts"]["after"]["relearn 20"]["samples"] == 20
    assert "what merely" in (tmp_path / "probe" / "audit.html").read_text()
    assert "not a folder" in error(capsys, "eval", gan, gan, "--negatives", tmp_path / "none", "--out", tmp_path / "x")


def check_release(out, released, capsys):
    """What `atu release` hands over: the generator that samples, numbers, and no text of the run but its settings."""
    assert run("release", out, "--out", released) == 0
    names = {"generator.safetensors", "numbers.json", "config.toml", "SHA256SUMS"}
    assert {path.name for path in released.iterdir()} == names
    before, after = GAN.load(out / "result.safetensors"), GAN.load(released / "generator.safetensors")
    assert torch.equal(after.sample(5), before.sample(5))
    assert after.modules().keys() == {"generator"}
    for path in released.iterdir():
        assert str(out.parent).encode() not in path.read_bytes()
    numbers = json.loads((released / "numbers.json").read_text())
    data = json.loads((out / "report.json").read_text())
    assert numbers["negatives_after"] == data["negatives_after"] and numbers["pul"] == data["pul"]
    assert not {"subject", "command", "made", "targets"} & numbers.keys()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=released, check=True)
    capsys.readouterr()
    assert "expected a new or empty folder" in error(capsys, "release", out, "--out", released)
    assert "a folder without result.safetensors" in error(capsys, "release", released, "--out", released / "x")


def test_unlearn_by_a_method(folder, tmp_path, capsys):
    """A baseline has no adapted generator; its report is complete all the same. Another method is another run."""
    gan, negatives, out = folder / "gan.safetensors", tmp_path / "negatives", tmp_path / "run"
    assert run("sample", gan, "--samples", 12, *judge(folder), "--out", negatives) == 0
    (tmp_path / "quick.toml").write_text(
        QUICK + "[methods.cf_k]\nk = 1\nsteps = 4\ncheck_every = 2\ncheck_samples = 100\n"
    )
    arguments = ["unlearn", gan, "--negatives", negatives, *judge(folder), "--config", tmp_path / "quick.toml"]
    assert run(*arguments, "--method", "cf-k", "--samples", 200, "--quiet", "--out", out) == 0
    data = json.loads((out / "report.json").read_text())
    assert data["decisions"]["method"] == "cf-k" and data["decisions"]["k"] == 1
    assert data["models"].keys() == {"before", "after"}
    page = (out / "report.html").read_text()
    assert "cf-k: losses" in page and "Stage 2" not in page
    capsys.readouterr()
    assert "another config.method (cf-k there, el2 now)" in error(capsys, *arguments, "--method", "el2", "--out", out)
    assert "'fisher' is not one of 'atu', 'el2'" in error(capsys, *arguments, "--method", "fisher", "--out", out)
    line = error(capsys, *arguments, "--compat", "reference", "--out", tmp_path / "other")
    assert "compat: the reference's settings are those of a StyleGAN2" in line and not (tmp_path / "other").exists()


def test_errors_name_options_as_the_command_line_does(folder, tmp_path, capsys):
    gan, negatives = folder / "gan.safetensors", tmp_path / "negatives"
    run("sample", gan, "--samples", 3, *judge(folder), "--out", negatives)
    arguments = ["unlearn", gan, "--negatives", negatives, "--from", tmp_path, "--out", tmp_path / "run"]
    assert error(capsys, *arguments).startswith("Error: from: expected the folder of a run")


def test_unlearn_without_an_oracle_says_who_judged(folder, tmp_path):
    gan, negatives, out = folder / "gan.safetensors", tmp_path / "negatives", tmp_path / "run"
    run("sample", gan, "--samples", 20, *judge(folder), "--out", negatives)
    arguments = ["unlearn", gan, "--negatives", negatives, "--config", folder / "quick.toml", "--samples", 150]
    assert run(*arguments, "--quiet", "--out", out) == 0
    assert "a probe fitted on your negatives" in (out / "report.html").read_text()
    data = json.loads((out / "report.json").read_text())
    assert data["features"] == "discriminator"
    assert data["probe"]["of"] == 20 and data["probe"]["of_good"] == 0
    assert f"recognises {data['probe']['recognised']} of 20 unwanted ones" in (out / "report.html").read_text()


def test_what_cannot_be_right_is_told_in_words(folder, tmp_path, capsys):
    gan, negatives = folder / "gan.safetensors", tmp_path / "negatives"
    run("sample", gan, "--samples", 3, *judge(folder), "--out", negatives)
    arguments = ["unlearn", gan, "--negatives", negatives, "--config", folder / "quick.toml", "--samples", 50]
    assert run(*arguments, "--out", tmp_path / "run") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "Warning: negatives: " in told and "FeedbackWarning" not in told and ".py:" not in told
    warned = json.loads((tmp_path / "run" / "decisions.json").read_text())["warnings"]
    assert warned and all(f"Warning: {one}" in told for one in warned)


def error(capsys, *arguments):
    """The one line that a failing command prints; checks the exit code, and that there is no traceback."""
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("Error:")]) == 1
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


def test_errors_are_one_clear_line(folder, tmp_path, capsys):
    gan = folder / "gan.safetensors"
    out = ["--out", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    unlearn = ["unlearn", gan, "--negatives"]
    assert "nowhere.pt: no such file" in error(capsys, "sample", "nowhere.pt", *out)
    assert "by --model FILE.py:FUNCTION" in error(capsys, "sample", f"{gan},{gan}", *out)
    assert "not a folder" in error(capsys, *unlearn, tmp_path / "none", *out)
    assert "holds no image" in error(capsys, *unlearn, tmp_path / "empty", *out)
    assert "expected one of right, left, got 'up'" in error(capsys, "sample", gan, *judge(folder, "up"), *out)
    unnamed = error(capsys, "sample", gan, "--oracle", folder / "judge.safetensors", *out)
    assert "say which of its classes are unwanted, one of right, left" in unnamed
    assert "--class needs" in error(capsys, "sample", gan, "--class", "left", *out)
    assert "--judge SPEC (a classifier with --class K" in error(capsys, "eval", gan, gan, *out)
    assert "expected a file of format atu-classifier" in error(
        capsys, "sample", gan, "--oracle", gan, "--class", "left", *out
    )
    assert "got 'gpu7'" in error(capsys, "sample", gan, "--device", "gpu7", *out)
    assert "truncation_psi" in error(capsys, "sample", gan, "--truncation", "0.5", *out)
    assert "No such command 'unlaern'" in error(capsys, "unlaern")
    assert not (tmp_path / "out").exists()


def test_tables_keep_brackets_and_colons_of_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    names, rate = ["[red]", "x[/b] :cat:"], dict(share=0.9, ci95=[0.8, 0.95])
    data = dict(accuracy=rate, held_out=20, classes=names, confusion=[[9, 1], [1, 9]])
    print_classifier({**data, "by_class": {name: dict(sensitivity=rate) for name in names}})
    print_audit([["", *names], ["net[1].pt", "3", "4"]])
    told = capsys.readouterr().out
    assert all(told.count(name) == count for name, count in zip(names, (3, 3), strict=True)) and "net[1].pt" in told


def test_a_classifier_that_is_there_already_is_named(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    there, other = tmp_path / "there.safetensors", tmp_path / "notes.txt"
    for path in (there, other):
        path.write_text("kept")
    line = error(capsys, "train-classifier", tmp_path / "data", "--out", there)
    assert line == f"Error: out: {there} is there already; give another name"
    line = error(capsys, "train-classifier", tmp_path / "data", "--out", other)
    assert f"out: expected a file ending in .safetensors, or a folder, but {other} is a file" in line
    assert there.read_text() == other.read_text() == "kept"


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "meta"])
def test_a_device_that_bench_does_not_know(name, capsys):
    line = error(capsys, "bench", "--device", name)
    assert line == f"Error: Invalid value for --device: expected cpu or cuda, got '{name}'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without CUDA")
def test_cuda_asked_for_and_absent(folder, tmp_path, capsys):
    line = error(capsys, "sample", folder / "gan.safetensors", "--device", "cuda", "--out", tmp_path / "out")
    assert "torch sees no CUDA device" in line


def test_corrupt_checkpoint(folder, tmp_path, capsys):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((folder / "gan.safetensors").read_bytes()[:-100])
    assert "torn.safetensors" in error(capsys, "sample", torn, "--out", tmp_path / "out")


def test_folder_of_another_run_is_left_alone(folder, tmp_path, capsys):
    gan, negatives, out = folder / "gan.safetensors", tmp_path / "negatives", tmp_path / "run"
    run("sample", gan, "--samples", 5, *judge(folder), "--out", negatives)
    arguments = ["unlearn", gan, "--negatives", negatives, *judge(folder), "--config", folder / "quick.toml"]
    arguments += ["--samples", 50, "--quiet", "--out", out]
    assert run(*arguments) == 0
    before = (out / "result.safetensors").read_bytes()
    assert "another seed (0 there, 1 now)" in error(capsys, *arguments, "--seed", 1)
    assert (out / "result.safetensors").read_bytes() == before


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        cli.main(["--debug", "sample", "nowhere.pt", "--out", str(tmp_path)])


def test_unexpected_errors_name_their_type(monkeypatch, capsys, folder, tmp_path):
    def broken(self, *args, **kwargs):
        raise KeyError("inner")

    monkeypatch.setattr(GAN, "batches", broken)
    line = error(capsys, "sample", folder / "gan.safetensors", "--out", tmp_path / "out")
    assert "KeyError: 'inner' (atu --debug" in line


@pytest.mark.parametrize("raised", ["int('x')", "torch.zeros(2).numpy().reshape(3)"])
def test_a_value_error_that_nobody_checked_for_is_not_the_users(raised, monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setattr(images, "save_folder", lambda *args, **kwargs: eval(raised))
    line = error(capsys, "sample", folder / "gan.safetensors", "--out", tmp_path / "out")
    assert line.startswith("Error: ValueError: ") and "(atu --debug sample" in line
    monkeypatch.setattr(GAN, "batches", lambda self, *args, **kwargs: eval(raised))  # nor one in the generator
    line = error(capsys, "sample", folder / "gan.safetensors", "--out", tmp_path / "out")
    assert line.startswith("Error: RuntimeError: gan: its generator fails ") and "(atu --debug sample" in line


def test_interrupt_says_how_to_go_on(monkeypatch, capsys, folder, tmp_path):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(GAN, "load", stop)
    gan, out = folder / "gan.safetensors", tmp_path / "my run"
    assert run("unlearn", gan, "--negatives", tmp_path, "--out", out) == 130
    assert capsys.readouterr().err.strip().endswith(f"atu unlearn {gan} --negatives {tmp_path} --out '{out}'")
    assert run("sample", gan, "--out", out) == 130
    assert "goes on" not in capsys.readouterr().err


def test_sigterm_has_its_own_code(monkeypatch, capsys, folder, tmp_path):
    """143, as of a process that the signal ended; what was saved is told as after Ctrl-C."""

    def stop(*args, **kwargs):
        raise Terminated("stopped")

    monkeypatch.setattr(GAN, "load", stop)
    assert run("unlearn", folder / "gan.safetensors", "--negatives", tmp_path, "--out", tmp_path / "run") == 143
    assert "the same command goes on from here" in capsys.readouterr().err


def test_console_script_exits_with_the_code(tmp_path):
    command = [sys.executable, "-m", "atu", "sample", "nowhere.pt", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
