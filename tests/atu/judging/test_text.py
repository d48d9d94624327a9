"""Words as an oracle: on a stand-in with open_clip's interface, and on open_clip itself where it can be imported."""

from __future__ import annotations

import hashlib
import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atu.gan import GAN
from atu.judging.finding import find
from atu.judging.rule import check_independent
from atu.judging.text import ANYTHING, DEFAULT_MODEL, load_clip, text_rank
from atu.networks.mlp import MLPDiscriminator, MLPGenerator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def gan_of(*shape):
    """Untrained, of images of an odd size."""
    return GAN(MLPGenerator(5, list(shape), hidden=(13,), output="tanh"), MLPDiscriminator(list(shape), hidden=(13,)))


class Tiny(nn.Module):
    """A CLIP of three dimensions: the mean colour of an image, and what colours are named in a text."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Module()
        self.visual.preprocess_cfg = {"size": 6, "mean": MEAN, "std": STD}
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.mix = nn.Parameter(torch.eye(3))

    def encode_image(self, x, normalize):
        assert normalize and x.shape[1:] == (3, 6, 6)
        return F.normalize(x.mean((2, 3)) @ self.mix, dim=1)

    def encode_text(self, tokens, normalize):
        assert normalize
        return F.normalize(tokens.float() @ self.mix, dim=1)


def tokens_of(texts):
    return torch.tensor([[1 + 5 * text.count(name) for name in ("red", "green", "blue")] for text in texts])


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """open_clip's functions that are used, with a model "tiny" and one tag of weights, "seen", which is not here."""
    fake = types.ModuleType("open_clip")
    configs = {"tiny": {"text_cfg": {}}, "far": {"text_cfg": {"hf_tokenizer_name": "some/tokenizer"}}}
    configs[DEFAULT_MODEL] = {"text_cfg": {}}
    fake.get_model_config = configs.get
    fake.list_models = lambda: list(configs)
    fake.list_pretrained_tags_by_model = lambda model: ["seen"]
    fake.get_pretrained_cfg = lambda model, tag: {"hf_hub": "someone/weights/", "mean": MEAN, "std": STD}
    fake.create_model = lambda model, pretrained_text, force_quick_gelu, device: Tiny()
    fake.get_tokenizer = lambda model: tokens_of
    fake.get_model_preprocess_cfg = lambda model: model.visual.preprocess_cfg

    def load_checkpoint(model, path, weights_only):
        assert weights_only
        model.load_state_dict(torch.load(path, weights_only=True))

    fake.load_checkpoint = load_checkpoint
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    hub = types.ModuleType("huggingface_hub")
    hub.cached = {}
    hub.try_to_load_from_cache = lambda repository, file: hub.cached.get((repository, file))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def by_hand(x, words, against):
    """The definition, in float64: cosines of the mean of the phrasings, times the scale, softmax over both texts."""
    small = F.interpolate((x.double() + 1) / 2, (6, 6), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    image = F.normalize(((small - mean) / std).mean((2, 3)), dim=1)
    texts = [F.normalize(F.normalize(tokens_of(group).double(), dim=1).mean(0), dim=0) for group in (words, against)]
    return (torch.tensor(2.0).exp() * image @ torch.stack(texts).T).softmax(1)[:, 0].float()


def phrased(words):
    return [words, f"a photo of {words}", f"a picture of {words}"]


@pytest.mark.parametrize("channels", [1, 3])
def test_words_rank_answer_and_judge(channels, stand_in):
    gan = gan_of(channels, 11, 7)
    x = gan.sample(31, seed=4)
    seen = x.expand(-1, 3, -1, -1)
    spec = f"text:red hats?against=blue hats&model=tiny&weights={stand_in}"
    found, expected = find(spec, gan), by_hand(seen, phrased("red hats"), phrased("blue hats"))
    torch.testing.assert_close(found.rank(x), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(found(x), expected >= 0.5)
    low = float(expected.sort().values[10:12].mean())
    assert torch.equal(find(f"{spec}&threshold={low}", gan)(x), expected >= low)
    assert found.identity == {
        "spec": "text:red hats?against=blue hats&model=tiny",
        "sha256": hashlib.sha256(stand_in.read_bytes()).hexdigest(),
    }
    rank = text_rank("red hats", gan, model="tiny", weights=stand_in)
    torch.testing.assert_close(rank(x), by_hand(seen, phrased("red hats"), ANYTHING), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"judge: .* is the network that answers during the run"):
        check_independent(found, find(f"text:a cat?model=tiny&weights={stand_in}", gan))


def test_weights_are_taken_from_the_cache_and_never_downloaded(stand_in):
    gan = gan_of(3, 11, 7)
    with pytest.raises(
        ValueError, match=r"weights of ViT-B-32 are not on this machine.*someone/weights.*--clip-weights"
    ):
        find("text:hat", gan)
    sys.modules["huggingface_hub"].cached[("someone/weights", "open_clip_pytorch_model.bin")] = str(stand_in)
    assert load_clip().weights == stand_in
    assert load_clip("tiny", "seen").mean == MEAN


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("text:hat?model=nowhere", "open_clip has no model 'nowhere'; it has tiny"),
        ("text:hat?model=far", "far needs a tokenizer that would be downloaded"),
        ("text:hat?model=none.json", r"none\.json: no such file"),
        ("text:hat?weights=none.pt", r"weights: none\.pt: no such file, nor one of open_clip's for ViT-B-32: seen"),
        ("text:hat?model=tiny&weights={w}&threshold=1", "a threshold between 0 and 1, got 1"),
        ("text: ?model=tiny&weights={w}", "text: expected words, got none"),
        ("text:hat?model=tiny&weights={torn}", "are not tiny's, or cannot be read"),
    ],
)
def test_what_is_missing_is_said(spec, words, stand_in, tmp_path):
    (tmp_path / "torn.pt").write_bytes(stand_in.read_bytes()[:100])
    with pytest.raises(ValueError, match=words):
        find(spec.format(w=stand_in, torn=tmp_path / "torn.pt"), gan_of(3, 11, 7))


def test_samples_that_are_no_pictures(stand_in):
    for gan in (gan_of(2, 5, 5), GAN(MLPGenerator(4, [2], hidden=(8,)), MLPDiscriminator([2], hidden=(8,)))):
        with pytest.raises(ValueError, match="text: judges images in grey or colour"):
            text_rank("hat", gan, model="tiny", weights=stand_in)


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"text: needs open_clip: pip install 'atu-ext\[text\]'"):
        load_clip()


# --- open_clip itself, tiny, with random weights


@pytest.fixture(scope="module")
def open_clip():
    """Real, or skipped. torchvision of another build lacks compiled operators that open_clip does not use: their names
    are enough for it to be imported."""
    import importlib.util

    if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("open_clip is not installed")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("open_clip")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_open_clip_itself(open_clip, suffix, tmp_path):
    from safetensors.torch import save_file

    config = tmp_path / "tiny_of_atu_tests.json"
    config.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    network = open_clip.create_model("tiny_of_atu_tests").eval()
    weights = tmp_path / f"tiny{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save({name: value.clone() for name, value in network.state_dict().items()}, weights)
    gan = gan_of(3, 41, 23)
    found = find(f"text:eyeglasses?against=no eyeglasses&model={config}&weights={weights}", gan)
    x = gan.sample(19)
    seen = F.interpolate((x.clamp(-1, 1) + 1) / 2, (32, 32), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        image = network.encode_image((seen - mean) / std, normalize=True)
        tokenizer = open_clip.get_tokenizer("tiny_of_atu_tests")
        texts = [
            F.normalize(network.encode_text(tokenizer(phrased(words)), normalize=True).mean(0), dim=0)
            for words in ("eyeglasses", "no eyeglasses")
        ]
        expected = (network.logit_scale.exp() * image @ torch.stack(texts).T).softmax(1)[:, 0]
    torch.testing.assert_close(found.rank(x), expected, rtol=1e-4, atol=1e-6)
    assert found.spec == "text:eyeglasses?against=no eyeglasses&model=tiny_of_atu_tests.json"


def test_open_clip_itself_downloads_nothing(open_clip, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"not on this machine.*open_clip_model\.safetensors of [\w-]+/[\w-]+"):
        find("text:hat", gan_of(3, 11, 7))
