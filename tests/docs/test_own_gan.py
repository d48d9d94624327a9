"""The commands of docs/your-own-gan.md, in the page's order, on networks of a few thousand weights."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from atu.cli import main as cli
from atu.data.images import save_folder
from atu.formats.own_model import OwnModel
from atu.gan import GAN
from atu.judging.places import generator_digest

from .test_docs import ROOT, blocks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIZES = {
    "dcgan": dict(nz=7, ngf=4, ndf=4),
    "wgan_gp": dict(z_dim=7, width=6, size=16),
    "conditional": dict(nz=7, classes=5, width=4),
    "biggan": dict(z_dim=13, classes=10, width=4, size=16, embedding=5),
}
QUICK = """
[feedback]
pool = 64
[adapt]
steps = 1
fisher.n = 4
adversarial.augment = ""
adversarial.batch_size = 4
[repel]
steps = 2
check_every = 2
check_samples = 50
guide_steps = 1
adversarial.batch_size = 4
"""


def name_of(words):
    """The example that a command is about."""
    return Path(words[words.index("--model") + 1].partition(":")[0]).stem


def model(name):
    return OwnModel(str(ROOT / f"examples/{name}.py:build"), SIZES[name])


def marks(folder, gan):
    """What `atu label` would write: the brighter half of some samples is unwanted."""
    x = gan.sample(24, seed=3, batch_size=24)
    order = x.mean((1, 2, 3)).argsort()
    save_folder(x[order[12:]], gan.image_range, folder / "unwanted")
    save_folder(x[order[:12]], gan.image_range, folder / "good", seed=1)
    names = ["good"] * 12 + ["unwanted"] * 12
    samples = [dict(label=name, round=1, seed=3, row=row) for name, row in zip(names, order.tolist(), strict=True)]
    rounds = [dict(ckpt="gan", generator=generator_digest(gan))]
    (folder / "labels.json").write_text(json.dumps(dict(format=1, block=24, rounds=rounds, samples=samples)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trained weights (here: others than the function gives), marks, and the examples, as a user has them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "quick.toml").write_text(QUICK)
    torch.manual_seed(11)
    gans = {name: model(name).build() for name in SIZES}
    gans["biggan"].generator_ema = model("biggan").build().generator
    for name, gan in gans.items():
        for module in gan.modules().values():
            for p in module.parameters():
                p.data.mul_(1.5)
        marks(folder / {"dcgan": "marks", "wgan_gp": "marks-wgan"}.get(name, f"marks-{name}"), gan)
    states = {name: [m.state_dict() for m in (gan.generator, gan.discriminator)] for name, gan in gans.items()}
    for name, files in (("dcgan", ("netG.pth", "netD.pth")), ("conditional", ("cG.pth", "cD.pth"))):
        for state, file in zip(states[name], files, strict=True):
            torch.save(state, folder / file)
    torch.save(dict(zip(("generator", "critic"), states["wgan_gp"], strict=True)), folder / "wgan.pt")
    average = gans["biggan"].generator_ema.state_dict()
    torch.save(dict(zip(("G", "D"), states["biggan"], strict=True)) | {"G_ema": average}, folder / "biggan.pt")
    return folder


def commands():
    lines = [
        line for kind, text in blocks(Path("docs/your-own-gan.md")) if kind == "bash" for line in text.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines]


def run(words, folder):
    """A command of the page, with small sizes, little training and few samples."""
    words = [word for word in words if word not in ("--arg", "classes=10")]
    more = [word for key, value in SIZES[name_of(words)].items() for word in ("--arg", f"{key}={value}")]
    if words[0] == "unlearn":
        more += ["--config", folder / "quick.toml"]
    if words[0] in ("unlearn", "eval"):
        more += ["--samples", 64, "--quiet"]
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, [*words, *more])))
    assert done.value.code == 0, words


def test_the_commands_of_the_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    lines = commands()
    assert {name_of(words) for words in lines} == set(SIZES) and len(lines) >= 9
    for words in lines:
        if words[0] != "label":  # its page is tested with a browser
            run(words, folder)
    told = capsys.readouterr().out
    assert "latent_dim: (7, 1, 1)" in told and "discriminator_output: probability" in told
    assert "weights of generator: netG.pth fits" in told

    # The result is another generator, in the run folder and in the file that goes back.
    first = torch.load("netG.pth", weights_only=True)
    back = torch.load("netG-unlearned.pth", weights_only=True)
    assert back.keys() == first.keys() and any(not torch.equal(back[key], first[key]) for key in first)
    network = model("dcgan").build().generator
    network.load_state_dict(back)
    result = GAN.load("run/result.safetensors", generator=network, discriminator=model("dcgan").build().discriminator)
    assert torch.equal(result.generator_ema.state_dict()["main.0.weight"], back["main.0.weight"])
    for name in ("run", "run-wgan", "run-conditional", "run-biggan"):
        data = json.loads(Path(name, "report.json").read_text())
        assert data["n"] == 64 and data["decisions"]["method"] == "atu"
    assert len(list(Path("threes").glob("*.png"))) == 16


def test_the_page_shows_what_the_example_has():
    shown = next(text for kind, text in blocks(Path("docs/your-own-gan.md")) if kind == "python")
    assert shown.partition("\n")[2] in (ROOT / "examples/dcgan.py").read_text()


def test_sizes_of_the_tutorial():
    """The counts of parameters that the tutorial's networks have, and their names."""
    gan = OwnModel(str(ROOT / "examples/dcgan.py:build")).build()
    counts = [sum(p.numel() for p in module.parameters()) for module in (gan.generator, gan.discriminator)]
    assert counts == [3_576_704, 2_765_568]
    assert {"main.0.weight", "main.1.running_mean", "main.12.weight"} <= gan.generator.state_dict().keys()
    assert {"main.0.weight", "main.2.weight", "main.11.weight"} <= gan.discriminator.state_dict().keys()


@pytest.mark.parametrize("name", ["wgan_gp", "biggan"])
def test_the_first_layer_of_a_critic_sees_dark_images(name):
    """A ReLU in front of it would let through nothing below 0."""
    critic, first = model(name).build().discriminator, []
    convolution = critic.blocks[0].conv1
    convolution.register_forward_hook(lambda module, args, y: first.append(y))
    with torch.no_grad():
        for x in torch.rand(2, 1, 3, 16, 16) - 1:
            critic(x, *([torch.zeros(1, dtype=torch.long)] if name == "biggan" else []))
    assert not torch.equal(*first)
