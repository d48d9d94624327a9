"""Feature networks from files, with small stand-ins of the interfaces that the packages have."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from atu.evaluation.evaluate import evaluate
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.measures.extractors import colour, extractor
from atu.measures.frechet import frechet

# TorchScript is what such files come in, whatever its future.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Means(nn.Module):
    """uint8 images to 4 numbers: means of the channels and one of the rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float() / 255
        return torch.cat([x.mean(dim=(2, 3)), x[:, :1, 0].mean(2)], 1)


@pytest.fixture
def script(tmp_path):
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    return f"torchscript:{tmp_path / 'means.pt'}"


def test_torchscript(script):
    kind, features = extractor(script)
    x = torch.randint(0, 256, (113, 1, 7, 5), dtype=torch.uint8)  # more than are taken at once
    assert kind == "torchscript"
    assert torch.allclose(features(x), Means()(x.expand(-1, 3, -1, -1)))


class FeatureExtractorInceptionV3(nn.Module):
    """The interface of torch-fidelity's: the names of features, a file of weights, a tuple of what was asked for."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.linear = nn.Linear(3, 6)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (self.linear(x.float().mean(dim=(2, 3))),)


def test_inception_takes_the_weights_at_hand(tmp_path, monkeypatch):
    package, inner = types.ModuleType("torch_fidelity"), types.ModuleType("inner")
    inner.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", inner)
    layer = nn.Linear(3, 6)
    torch.save({f"linear.{name}": value for name, value in layer.state_dict().items()}, tmp_path / "w.pth")
    kind, features = extractor(f"inception:{tmp_path / 'w.pth'}")
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert kind == "inception"
    assert torch.allclose(features(x), layer(x.float().mean(dim=(2, 3))), atol=1e-4)
    (tmp_path / "bad.pth").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(ValueError, match=r"bad\.pth is no file of weights"):
        extractor(f"inception:{tmp_path / 'bad.pth'}")


class Dinov2Model(nn.Module):
    """The interface of transformers': from a folder, local files only; tokens [N, T, F] of whitened images."""

    asked: dict

    @classmethod
    def from_pretrained(cls, path, **options):
        cls.asked = dict(options, path=path)
        return cls()

    def forward(self, pixel_values):
        assert pixel_values.shape[1:] == (3, 224, 224)
        first = pixel_values.mean(dim=(2, 3))[:, None]
        return types.SimpleNamespace(last_hidden_state=torch.cat([first, first + 9], 1))


def test_dinov2_takes_the_folder_at_hand_and_whitens(tmp_path, monkeypatch):
    package = types.ModuleType("transformers")
    package.Dinov2Model = Dinov2Model
    monkeypatch.setitem(sys.modules, "transformers", package)
    kind, features = extractor(f"dinov2:{tmp_path}")
    assert kind == "dinov2"
    assert Dinov2Model.asked == dict(path=str(tmp_path), local_files_only=True, use_safetensors=True)
    x = torch.full((3, 3, 9, 9), 255, dtype=torch.uint8)
    x[1] = 0
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.stack([(1 - mean) / deviation, -mean / deviation, (1 - mean) / deviation])
    assert torch.allclose(features(x), expected, atol=1e-5)


@pytest.mark.parametrize("package", ["torch_fidelity", "transformers"])
def test_without_the_package_it_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    kind = "inception" if package == "torch_fidelity" else "dinov2"
    with pytest.raises(ImportError, match=f"pip install {package.replace('_', '-')}"):
        extractor(f"{kind}:{tmp_path}")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="a kind of inception, dinov2, torchscript, got 'clip:x'"):
        extractor("clip:x")
    with pytest.raises(ValueError, match="no such file or folder; nothing is downloaded"):
        extractor(f"inception:{tmp_path}/none.pth")
    with pytest.raises(ValueError, match=r"1 or 3, H, W\], got samples \[2\]"):
        colour(torch.zeros(4, 2))


class Picture(nn.Module):
    """Grey pictures 4 x 4 whose brightness is the latent's first number, moved."""

    latent_dim = 3

    def __init__(self, offset):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, z):
        return (0.3 * z[:, :1, None, None] + self.offset).expand(-1, 1, 4, 4).clamp(-1, 1) * torch.ones(4)


def test_each_network_has_distances_of_its_own(script):
    first, last = GAN(Picture(0.0)), GAN(Picture(0.3))
    name, features = extractor(script)
    real = first.sample(150, seed=5)

    def judge(x):
        return x[:, 0, 0, 0] < -0.4

    class Both(nn.Module):
        def features(self, x):
            return x.flatten(1)

        def head(self, pixels):
            dark = (pixels[:, 0] < -0.4).float()
            return torch.stack([dark, 1 - dark], 1)

    classifier = Classifier(Both(), ["dark", "other"])
    found = evaluate(
        first, last, classifier, ["dark"], real, n=200, extractors={name: features, "twice": lambda x: 2 * features(x)}
    )
    distances = found.figures.distances
    assert list(distances) == ["torchscript", "twice"]
    x = last.sample(200, 0, batch_size=250)
    kept = real[~judge(real)]
    as_bytes = [((part + 1) * 127.5).round().to(torch.uint8) for part in (kept, x)]
    expected = frechet(*(Means()(part.expand(-1, 3, -1, -1)) for part in as_bytes))
    assert distances["torchscript"].real_fid["after"] == pytest.approx(expected, rel=1e-4)
    assert distances["twice"].real_fid["after"] == pytest.approx(4 * expected, rel=1e-3)
    assert distances["torchscript"].frechet > distances["torchscript"].frechet_chance
    assert found.figures.models["after"].fid_cls != pytest.approx(expected, rel=1e-3)
