"""ONNX, safetensors and the commands."""

import json
import os
import re
import subprocess
import sys

import nvidia_format as nf
import pytest
import torch
from click.testing import CliRunner

from atu.cli.main import cli, main
from atu.formats.export import export, format_of
from atu.gan import GAN
from atu.networks import stylegan2
from atu.training.fit_discriminator import fit_discriminator


def test_format_by_suffix():
    names = ["a.pkl", "a.pt", "a.pth", "a.onnx", "a.safetensors"]
    assert [format_of(n) for n in names] == [*("nvidia-pkl", "rosinality-pt", "rosinality-pt", "onnx", "safetensors")]
    for name in ("a.zip", "a"):
        with pytest.raises(ValueError, match=f"{name}: expected a file ending in .pt, .pth"):
            format_of(name)
    words = "format: expected one of rosinality-pt, safetensors, nvidia-pkl, onnx, state-dict, got 'tflite'"
    with pytest.raises(ValueError, match=words):
        export(GAN(nf.small_pair()[0]), "x", "tflite")


def test_safetensors_round_trip_keeps_every_buffer(tmp_path):
    generator, discriminator, average = nf.small_pair(c_dim=2)
    gan = GAN(generator, discriminator, generator_ema=average)
    gan.save(tmp_path / "a.safetensors")
    again = GAN.load(tmp_path / "a.safetensors")
    for name, module in gan.modules().items():
        loaded = again.modules()[name].state_dict()
        assert {n for n in loaded if n.endswith(("w_avg", "noise_const"))} == {
            n for n in module.state_dict() if n.endswith(("w_avg", "noise_const"))
        }
        assert all(torch.equal(value, loaded[n]) for n, value in module.state_dict().items())


@pytest.mark.slow
def test_onnx_agrees_with_torch(tmp_path):
    import onnxruntime

    generator, _, average = nf.small_pair(c_dim=3)
    gan = GAN(generator, generator_ema=average)
    gan.save(tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    z, c = torch.randn(5, 8), torch.eye(3)[[0, 1, 2, 0, 1]]
    (image,) = session.run(None, {"z": z.numpy(), "c": c.numpy()})
    expected = average.eval()(z, c, noise_mode="const")
    torch.testing.assert_close(torch.from_numpy(image), expected, rtol=0, atol=1e-4)


def test_onnx_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"atu-ext\[onnx\]"):
        GAN(nf.small_pair()[0]).save(tmp_path / "g.onnx")


def test_fitted_discriminator_tells_samples_from_disturbed_ones():
    """After 60 steps it scores the generator's samples above those of a strongly disturbed copy."""
    generator = nf.small_pair(seed=3)[0]
    gan = fit_discriminator(GAN(generator), 60, batch_size=16, channel_base=64, channel_max=8, seed=1)
    disturbed = nf.small_pair(seed=9)[0]
    with torch.no_grad():
        own, other = gan.logits(gan.sample(128, seed=2)), gan.logits(gan.sample(128, seed=2, generator=disturbed))
    assert float((own[:, None] > other[None]).float().mean()) > 0.6  # 0.5 is chance
    with pytest.raises(ValueError, match="steps"):
        fit_discriminator(gan, 0)


class ByIndex(torch.nn.Module):
    """Takes labels as int64 [N]; rows: of its nn.Embedding."""

    z_dim, c_dim = 4, 3

    def __init__(self, rows):
        super().__init__()
        self.kind, self.layer = torch.nn.Embedding(rows, 4), torch.nn.Linear(4, 3 * 8 * 8)

    def forward(self, z, c):
        return self.layer(z + self.kind(c)).tanh().reshape(-1, 3, 8, 8)


@pytest.mark.parametrize("label_format", ["index", "auto"])
def test_a_discriminator_is_fitted_for_a_generator_that_takes_indices(label_format):
    gan = GAN(ByIndex(3), label_format=label_format)
    fitted = fit_discriminator(gan, 1, batch_size=2, channel_base=64, channel_max=8)
    z, c = fitted.inputs(5)
    assert fitted.logits(fitted.fake(z, c), c).shape == (5,)
    assert gan.label_format == label_format and fitted.label_format == "auto"
    assert torch.equal(fitted.sample(5), gan.sample(5))


def test_a_generator_that_takes_indices_by_label_format_alone_is_told():
    gan = GAN(ByIndex(4), label_format="index")
    with pytest.raises(ValueError, match=r"label_format: expected 'auto' or 'one-hot', got 'index': .* of 3 rows"):
        fit_discriminator(gan, 1, batch_size=2, channel_base=64, channel_max=8)


def test_commands_end_to_end(tmp_path, capsys):
    source = tmp_path / "net.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    run = CliRunner().invoke(cli, ["inspect", str(source), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["networks"]["generator"]["kind"] == "stylegan2 generator"
    shown = CliRunner().invoke(cli, ["inspect", str(source)]).output
    assert "nvidia-pkl" in shown and "generator_ema" in shown and "training_set_kwargs" in shown
    assert re.search(r"generator_ema +stylegan2 +8 +3 +8 +[\d,]+ +float32", shown)  # no word is cut in two
    assert re.search(r"discriminator +stylegan2 +8 +3 +[\d,]+ +float32", shown)
    for target in ("a.safetensors", "b.pkl", "c.pt"):
        run = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / target)])
        assert run.exit_code == 0, run.output
    assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", str(tmp_path / "bad.pkl")])
    assert exit_.value.code == 2 and "os.system" in capsys.readouterr().err


def test_a_file_that_is_there_is_overwritten_only_by_force(tmp_path, capsys):
    source = tmp_path / "network-snapshot.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    before = source.read_bytes()
    for target, text in ((source, "there already"), (tmp_path / "u.zip", "expected a file ending in .pt")):
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(source), str(target)])
        assert exit_.value.code == 2 and text in capsys.readouterr().err
    gan = GAN.load(source)
    with pytest.raises(ValueError, match="the file that the GAN came from"):
        gan.save(source)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    atu("export", source, tmp_path / "a.safetensors", "--force")
    assert GAN.load(tmp_path / "a.safetensors").sample_shape == gan.sample_shape


QUICK = """
[feedback]
pool = 64
[adapt]
steps = 2
fisher.n = 2
adversarial.batch_size = 4
[repel]
steps = 3
check_every = 3
check_samples = 20
guide_steps = 1
adversarial.batch_size = 4
"""


def atu(*arguments):
    """Run the command line in this process; it must succeed."""
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    assert exit_.value.code == 0


@pytest.mark.parametrize("held", ["all", "only G_ema", "no G_ema"])
def test_unlearn_a_network_pickle_and_export_it_back(tmp_path, capfd, held):
    """inspect, unlearn, export through the commands; the original's loader then reads the result."""
    generator, discriminator, average = nf.small_pair()
    kept = {
        "all": (generator, discriminator, average),
        "only G_ema": (None, None, average),
        "no G_ema": (generator, discriminator, None),
    }[held]
    source, run = tmp_path / "net.pkl", tmp_path / "run"
    source.write_bytes(nf.dumps(nf.snapshot(*kept)))
    (tmp_path / "quick.toml").write_text(QUICK)
    atu("inspect", source)
    if held == "only G_ema":
        assert "no discriminator" in capfd.readouterr().out
    atu("sample", source, "--samples", 12, "--seed", 3, "--out", tmp_path / "bad")
    more = ["--train-discriminator", 2] if held == "only G_ema" else []
    quick = ["--config", tmp_path / "quick.toml", "--samples", 20, "--quiet"]
    atu("unlearn", source, "--negatives", tmp_path / "bad", *more, *quick, "--out", run)
    atu("export", run, tmp_path / "unlearned.pkl")
    name = "G" if held == "no G_ema" else "G_ema"
    back = nf.original_loads((tmp_path / "unlearned.pkl").read_bytes())
    result = GAN.load(run / "result.safetensors").sampling_generator
    for layer in ("fc0", "fc1"):
        weight = back[name]._modules["mapping"]._modules[layer]._parameters["weight"]
        assert torch.equal(weight, getattr(result.mapping, layer).weight)
        assert not torch.equal(weight, getattr((average if name == "G_ema" else generator).mapping, layer).weight)


def test_unlearn_without_a_discriminator_says_what_to_do(tmp_path, capsys):
    source = tmp_path / "net.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(None, None, nf.small_pair()[2])))
    atu("sample", source, "--samples", 2, "--out", tmp_path / "bad")
    with pytest.raises(SystemExit) as exit_:
        main(["unlearn", str(source), "--negatives", str(tmp_path / "bad"), "--out", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "--train-discriminator STEPS" in capsys.readouterr().err


MEASURE = """
import os, sys
from atu.gan import GAN

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

GAN.load(sys.argv[1])  # imports what loading imports
for path in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak
    before = status("VmRSS")
    gan = GAN.load(path)
    print((status("VmHWM") - before) / os.path.getsize(path))
    del gan
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_loading_takes_less_than_twice_the_file(tmp_path):
    options = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3)
    wide = dict(channel_base=4096, channel_max=256)
    pair = [stylegan2.Generator(**options, synthesis_kwargs=wide) for _ in range(2)]
    gan = GAN(pair[0], stylegan2.Discriminator(0, 16, 3, **wide), generator_ema=pair[1])
    for path in (tmp_path / "big.pt", tmp_path / "big.safetensors"):
        gan.save(path)
    (tmp_path / "big.pkl").write_bytes(nf.dumps(nf.snapshot(gan.generator, gan.discriminator, gan.generator_ema)))
    (tmp_path / "small.pkl").write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    files = [str(tmp_path / name) for name in ("small.pkl", "big.pkl", "big.pt", "big.safetensors")]
    assert all(os.path.getsize(name) > 30e6 for name in files[1:])
    # What is freed goes back at once, so that one file's memory is not lent to the next.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True, env=env)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 3 and max(ratios) < 2, ratios


def test_a_state_dict_goes_back_into_its_network(tmp_path):
    """The averaged generator's where there is one; torch loads it weights-only, the network strictly."""
    generator, discriminator, average = nf.small_pair()
    path = export(GAN(generator, discriminator, generator_ema=average), tmp_path / "g.pth", "state-dict")
    state = torch.load(path, weights_only=True)
    generator.load_state_dict(state)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in state.items())
    with pytest.raises(ValueError, match=r"not a StyleGAN2 checkpoint: .*--model FILE\.py:FUNCTION"):
        GAN.load(path)
