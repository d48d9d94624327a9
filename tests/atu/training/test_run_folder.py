"""The run folder, and going on from where a killed or interrupted run stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from atu import adapt, repel, unlearn
from atu.config import Adversarial, Config
from atu.data.images import grid
from atu.data.samples import TensorSamples
from atu.formats.tensors import CheckpointError
from atu.gan import GAN
from atu.support.lock import FolderLock
from atu.support.signals import Terminated, held_back
from atu.training.loop import StageHooks, run_stage
from atu.training.run_folder import RunFolder, recorded
from atu.training.state import FORMAT, load_state
from atu.training.step import AdversarialStep, NonFiniteError, Objective

# One process imports everything, and forks a child for each run, which may kill itself at a step of a stage.
SCRIPT = """
import json, os, sys
import torch, torch.utils.tensorboard
from atu import GAN, unlearn
from atu.support import progress
from atu.training import run_folder
from atu.networks.mlp import MLPDiscriminator, MLPGenerator

progress.set_quiet(True)
torch.set_num_threads(1)
log = run_folder.RunFolder.log


def run(out, stage, step, sent):
    def log_and_die(self, name, at, seconds, metrics):
        log(self, name, at, seconds, metrics)
        if (name, at) == (stage, step):
            os.kill(os.getpid(), sent)

    run_folder.RunFolder.log = log_and_die
    torch.manual_seed(0)
    gan = GAN(MLPGenerator(4, [1, 4, 4], (8,), "tanh"), MLPDiscriminator([1, 4, 4], (8,)))
    x = gan.sample(60)
    order = x.mean([1, 2, 3]).argsort()
    small = {"batch_size": 4}
    config = {
        "feedback": {"pool": 200},
        "adapt": {"steps": 8, "models": 2, "adversarial": small},
        "repel": {"steps": 12, "check_every": 5, "check_samples": 50, "guide_steps": 2, "adversarial": small},
        "log_every": 1,
        "save_every": 3,
    }
    unlearn(gan, x[order[:10]], config=config, out=out, seed=3)


for job in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            run(*job)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.path.exists(job[0] + "/result.safetensors"))
"""


def weights(path):
    gan = GAN.load(path)
    return {f"{n}.{k}": v for n, m in gan.modules().items() for k, v in m.state_dict().items()}


def rows(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines]


@pytest.mark.slow
def test_killed_and_interrupted_runs_end_as_uninterrupted_ones(tmp_path):
    """SIGKILL before the first save and in both stages, then SIGTERM, then Ctrl-C: the same bits at the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kill = int(signal.SIGKILL)
    jobs = [(str(whole), "none", 0, 0)]
    jobs += [(str(broken), stage, step, kill) for stage, step in (("adapt-0", 2), ("adapt-1", 5), ("repel", 8))]
    jobs += [(str(broken), "repel", step, int(sent)) for step, sent in ((9, signal.SIGTERM), (10, signal.SIGINT))]
    jobs += [(str(broken), "none", 0, 0)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    killed = f"{-kill} False"
    assert done.stdout.splitlines() == ["0 True", *[killed] * 3, *["1 False"] * 2, "0 True"], done.stderr
    assert 'Terminated("repel: stopped at step 9' in done.stderr and 'KeyboardInterrupt("repel: ' in done.stderr
    assert "repel: stopped at step 10 of 12; the same call with out=" in done.stderr
    a, b = weights(whole / "result.safetensors"), weights(broken / "result.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert rows(whole) == rows(broken), "rows of the history are lost, doubled or changed"


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_undisturbed_ones(tmp_path):
    """The short version of fuzz_run_folder.py; the long one is run by hand."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_run_folder.py")), "--kills=3", f"--folder={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},  # for examples
    )
    assert done.returncode == 0 and "3 kills, " in done.stdout, done.stderr


# --- the folder

CONFIG = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "adversarial": {"batch_size": 4}},
    "repel": {"steps": 3, "check_every": 2, "check_samples": 50, "guide_steps": 2, "adversarial": {"batch_size": 4}},
}


@pytest.fixture
def negatives(vector_gan):
    x = vector_gan.sample(40)
    return x[x[:, 0] > x[:, 0].median()]


def changed(**sections):
    return {**CONFIG, **sections}


def test_folder_holds_what_it_says_and_a_second_call_adds_nothing(image_gan, tmp_path):
    x = image_gan.sample(12)
    first = unlearn(image_gan, x, config=CONFIG, out=tmp_path / "a" / "run")
    out = first.out
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and "tb" not in p.parts}
    checkpoints = {f"checkpoints/{name}.safetensors" for name in ("adapted-0", "repel-prepared", "repel-state")}
    assert found >= {"config.toml", "run.json", "metrics.jsonl", "result.safetensors", "decisions.json"} | checkpoints
    assert not any(".partial" in name or (name.startswith(".") and name != ".lock") for name in found)
    assert any((out / "tb").iterdir())
    with Image.open(next((out / "samples").glob("*.png"))) as picture:
        assert picture.size == (80, 80)
    assert Config.load(out / "config.toml") == first.config
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == first.history and {row["stage"] for row in lines} == {"adapt-0", "repel"}
    again = unlearn(image_gan, x, config=CONFIG, out=out)
    assert again.history == first.history
    for a, b in zip(first.generator.parameters(), again.generator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_of_something_else_is_not_resumed(vector_gan, negatives, tmp_path):
    kwargs = dict(gan=vector_gan, negatives=negatives, config=CONFIG, out=tmp_path / "run", seed=0)
    unlearn(**kwargs)
    other = vector_gan.copy()
    with torch.no_grad():
        other.generator.net[0].bias.add_(1e-6)
    steps = {**CONFIG["adapt"], "steps": 4}
    for change, words in (
        (dict(config=changed(adapt=steps)), r"another config\.adapt\.steps \(2 there, 4 now\); give another folder"),
        (dict(seed=1), r"another seed \(0 there, 1 now\)"),
        (dict(gan=other), "another gan"),
        (dict(negatives=negatives[:5]), "another negatives"),
        (dict(positives=negatives - 1), "another positives"),
        (dict(is_negative=lambda x: x[:, 0] > 0), "another oracle"),
    ):
        with pytest.raises(ValueError, match=rf"out: .*run holds a run with {words}"):
            unlearn(**{**kwargs, **change})


class Drawing(Dataset):
    """Each item is disturbed at random, as augmentations do it."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.01 * torch.randn(2)


@pytest.mark.parametrize("oracle", [None, lambda x: x[:, 0] > 0], ids=["probe", "oracle"])
def test_a_run_of_a_dataset_that_draws_is_resumed(vector_gan, negatives, tmp_path, oracle):
    """And the caller's random state stays as it was."""
    kwargs = dict(negatives=Drawing(negatives), is_negative=oracle, config=CONFIG, out=tmp_path)
    state = torch.get_rng_state()
    first = unlearn(vector_gan, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = unlearn(vector_gan, **kwargs)
    assert torch.equal(again.gan.sample(5), first.gan.sample(5)) and again.history == first.history
    with pytest.raises(ValueError, match="another negatives"):
        unlearn(vector_gan, **{**kwargs, "negatives": Drawing(negatives + 1)})


def test_nothing_is_recorded_of_a_run_without_a_folder(tmp_path, monkeypatch):
    """Whatever run the working directory may hold."""
    config = {"precision": "bfloat16", "threads": 1}
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"config": config}}))
    monkeypatch.chdir(tmp_path)
    assert recorded(None) == {} and recorded(tmp_path) == recorded(".") == {**config, "at_once": None}


def test_repel_minds_from_what_it_was_pushed(vector_gan, negatives, tmp_path):
    a, b = (adapt(vector_gan, negatives, config=CONFIG, seed=seed) for seed in (0, 1))
    repel(vector_gan, a, negatives, config=CONFIG, out=tmp_path / "run")
    repel(vector_gan, a, negatives, config=CONFIG, out=tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run with another adapted"):
        repel(vector_gan, b, negatives, config=CONFIG, out=tmp_path / "run")


def run_in(out, needed=0, config=None):
    return RunFolder(out, config or Config(), {"seed": 0}, needed)


def test_folders_that_will_not_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"out: .*file.* cannot be written \("):
            run_in(out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.toml").write_text("a = 1")
    with pytest.raises(ValueError, match=r"out: .*foreign holds something that is not a run of atu"):
        run_in(foreign)
    assert sorted(p.name for p in foreign.iterdir()) == ["config.toml"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for content in ("{", "{}", "[]"):
        (broken / "run.json").write_text(content)
        with pytest.raises(ValueError, match=r"out: .*run\.json cannot be read"):
            run_in(broken)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("atu.training.run_folder.shutil.disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ValueError, match=r"out: .* has 1 MB free, and this run needs about 500 MB"):
        run_in(tmp_path / "full", 500 * 10**6)

    def refuse(**kwargs):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("atu.support.files.tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"out: .*locked cannot be written \(Permission denied\)"):
        run_in(tmp_path / "locked")


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "report.html").write_text("x")
    run_in(tmp_path).close()
    run_in(tmp_path).close()
    assert (tmp_path / "report.html").read_text() == "x"


def test_history_of_a_killed_run(tmp_path):
    """Half a line at the end, and rows past the last save."""
    run = run_in(tmp_path)
    for step in (1, 2, 3):
        run.log("adapt-0", step, 0.0, {"x": step / 3})
    run.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "adapt-0", "st')
    run = run_in(tmp_path)
    assert [row["step"] for row in run.history] == [1, 2, 3]
    run.rewind("adapt-0", 2)
    run.log("adapt-0", 3, 0.0, {"x": 1.0})
    run.close()
    assert [(row["step"], row["x"]) for row in rows(tmp_path)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]


def test_state_that_cannot_be_read_is_told(tmp_path):
    run = run_in(tmp_path)
    assert run.load("x") is None
    run.save("x", {"a": {"b": torch.arange(3)}, "f": 0.1})
    state = run.load("x")
    assert state["a"]["b"].tolist() == [0, 1, 2] and state["f"] == 0.1
    path = tmp_path / "checkpoints" / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a readable .*; remove it, and the same call makes"):
        run.load("x")
    run.close()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_corrupt_state_is_told_and_the_one_before_is_taken(vector_gan, tmp_path, caplog, spoil):
    """Stopped at step 4 with states of steps 2 and 4, the later one spoilt: the same weights as without all that."""
    torch.manual_seed(4)
    whole = stage(run_in(None), vector_gan.copy(), steps=7)
    torch.manual_seed(4)
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        stage(run, vector_gan.copy(), At(4, lambda: os.kill(os.getpid(), signal.SIGINT)), steps=7)
    run.close()
    last = tmp_path / "checkpoints" / "stage-state.safetensors"
    spoil(last)
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})
    torch.manual_seed(5)
    again = stage(run, vector_gan.copy(), steps=7)
    run.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{last}: ") and warning.endswith("going on from the one before, " + str(previous(last)))
    for a, b in zip(whole.generator.parameters(), again.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    assert last.with_suffix(".unreadable").exists()
    assert load_state(last)["trainer"]["step"] == 7 and load_state(previous(last))["trainer"]["step"] == 6


def previous(path):
    return path.with_name(path.name.replace(".safetensors", ".previous.safetensors"))


def test_two_corrupt_states_are_both_told(vector_gan, tmp_path):
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})
    stage(run, vector_gan.copy())
    last = tmp_path / "checkpoints" / "stage-state.safetensors"
    for path in (last, previous(last)):
        flip_a_bit(path)
    words = r"stage-state\.safetensors: .*; .*stage-state\.previous\.safetensors: .*; remove what cannot be read"
    with pytest.raises(CheckpointError, match=words):
        stage(run, vector_gan.copy())
    run.remove("stage-state")
    assert list(last.parent.iterdir()) == []
    run.close()


def test_a_process_killed_between_the_two_renames_goes_on_from_the_one_before(vector_gan, tmp_path):
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})
    stage(run, vector_gan.copy())
    last = tmp_path / "checkpoints" / "stage-state.safetensors"
    last.unlink()
    assert run.load_latest("stage-state")["trainer"]["step"] == 4
    (last.parent / ".stage-state.safetensors.abcdefgh.partial.safetensors").write_bytes(b"half")
    run.close()
    run_in(tmp_path, config=Config(save_every=2)).close()
    assert list(last.parent.iterdir()) == [previous(last)], "what was being written lies about"


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """From another process, and from this one; not once the first has ended, however it did."""
    run = run_in(tmp_path)
    who = rf"in use by another run \(process {os.getpid()} on .*, since 20\d\d-.*\); wait for it to end, or give"
    with pytest.raises(ValueError, match=who):
        run_in(tmp_path)
    run.close()
    code = (
        "import sys; from pathlib import Path; from atu.support.lock import FolderLock; "
        "lock = FolderLock(Path(sys.argv[1]), 'out'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"out: .* is in use by another run \(process {other.pid} on "):
            run_in(tmp_path)
        (tmp_path / ".owner.json").write_text("{")
        with pytest.raises(ValueError, match="which has not said yet who it is"):
            run_in(tmp_path)
        other.kill()
    run_in(tmp_path).close()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".lock"]


def test_a_run_that_cannot_start_lets_go_of_its_folder(vector_gan, negatives, tmp_path):
    """So that what its error advises can be done in the same one; a run that was begun stays."""
    given = dict(negatives=negatives, config=CONFIG, out=tmp_path)

    def all_of_them(x):
        return x[:, 0] < 1e9

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="so none is left to learn from"):
        unlearn(vector_gan, is_negative=all_of_them, **given)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["notes.txt"]
    unlearn(vector_gan, is_negative=lambda x: x[:, 0] > 0, seed=1, **given)
    with pytest.raises(ValueError, match=r"another oracle|another seed"):
        unlearn(vector_gan, is_negative=all_of_them, **given)
    assert (tmp_path / "result.safetensors").is_file()
    FolderLock(tmp_path, "out").release()


def test_a_folder_of_an_earlier_version_says_which(tmp_path):
    run_in(tmp_path).close()
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    assert content["format"] == FORMAT
    del content["format"]
    content["versions"]["atu_ext"] = "0.0.7"
    for number in (None, FORMAT + 1):
        path.write_text(json.dumps(content if number is None else {**content, "format": number}))
        which = f"format {number}" if number else "an unknown format"
        words = rf"written by atu 0\.0\.7 in {which}, and this is atu .*, which reads format {FORMAT}; finish"
        with pytest.raises(ValueError, match=words):
            run_in(tmp_path)


def test_a_finished_run_says_so_and_trains_no_more(vector_gan, negatives, tmp_path, caplog, monkeypatch):
    first = unlearn(vector_gan, negatives, config=CONFIG, out=tmp_path)
    monkeypatch.setattr(AdversarialStep, "step", None)
    caplog.set_level("INFO")
    again = unlearn(vector_gan, negatives, config=CONFIG, out=tmp_path)
    assert f"{tmp_path}: this run is finished" in caplog.text
    assert again.history == first.history and again.decisions == first.decisions
    assert torch.equal(again.gan.sample(5), first.gan.sample(5))


def test_grid_places_images_row_by_row():
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 2, 3)
    picture = grid(images, (-1, 1), columns=3)
    assert picture.size == (9, 4) and picture.mode == "RGB"
    assert [picture.getpixel((3 * i + 1, 1))[0] for i in range(3)] == [0, 64, 128]
    assert [picture.getpixel((3 * i + 1, 3))[0] for i in range(3)] == [191, 255, 0]


# --- the loop

REAL = TensorSamples(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))


def stage(run, gan, hooks=None, steps=6):
    trainer = AdversarialStep(gan, REAL, Objective(), Adversarial(batch_size=4))
    run_stage(run, "stage", trainer, steps, hooks or StageHooks())
    return trainer


class At(StageHooks):
    """Calls something at one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def after_step(self, step, metrics):
        return bool(self.action()) if step == self.step else False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("folder", [True, False])
def test_ctrl_c_and_sigterm_finish_the_step_save_and_say_so(vector_gan, tmp_path, step, folder, sent):
    run = run_in(tmp_path) if folder else run_in(None)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=f"stage: stopped at step {step} of 6") as error:
        stage(run, vector_gan, At(step, lambda: os.kill(os.getpid(), sent)))
    assert ("the same call with out=" in str(error.value)) == folder
    assert isinstance(error.value, Terminated) == (sent == signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    if folder:
        assert run.load("stage-state")["trainer"]["step"] == step


@pytest.mark.parametrize(("sent", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_second_signal_stops_at_once(vector_gan, sent, kind):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), sent)
            time.sleep(0.05)
        raise AssertionError("still running")

    with pytest.raises(kind) as error:
        stage(run_in(None), vector_gan, At(2, twice))
    assert type(error.value) is kind


def test_training_in_another_thread_leaves_signals_alone(vector_gan):
    handler = signal.getsignal(signal.SIGINT)
    done = []

    def work():
        with held_back() as seen:
            assert signal.getsignal(signal.SIGINT) is handler and seen == []
        done.append(stage(run_in(None), vector_gan).step_count)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [6]


def test_a_step_that_spoils_the_weights_is_never_saved(vector_gan, tmp_path):
    """The losses of step 4 are finite, its update is not: the state of step 2 stays."""
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})

    class Spoil(Objective):
        def after_backward(self, step):
            if step.step_count == 3:
                step.generator.net[0].weight.grad.fill_(float("nan"))
            return {}

    trainer = AdversarialStep(vector_gan, REAL, Spoil(), Adversarial(batch_size=4))
    with pytest.raises(NonFiniteError, match="generator's weights became nan at step 4"):
        run_stage(run, "stage", trainer, 8, StageHooks())
    state = run.load("stage-state")["trainer"]
    assert state["step"] == 2
    assert all(torch.isfinite(v).all() for weights in state["gan"].values() for v in weights.values())
    run.close()


def test_a_disk_that_fills_up_keeps_the_last_state(vector_gan, tmp_path, monkeypatch):
    run = RunFolder(tmp_path, Config(save_every=2), {"seed": 0})

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def fill():
        monkeypatch.setattr("atu.formats.tensors.save_file", full)

    with pytest.raises(OSError, match="No space left on device"):
        stage(run, vector_gan, At(3, fill))
    assert run.load("stage-state")["trainer"]["step"] == 2
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["stage-state.safetensors"]
    run.close()
