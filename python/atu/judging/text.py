"""Words as a rule or a ranking: CLIP says how well images fit a text.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020):
zero-shot classification by the cosines between an image's embedding and those of texts, each the mean over a few
phrasings. The networks are open_clip's (extra `text`); nothing is downloaded.

How good it is for a given GAN and given words is not known: the numbers are no calibrated probabilities, CLIP was
trained on photographs of a few hundred pixels, and it is bad at counting, negation and small things. Look at what it
ranks first, and at what it ranks last, before you let it answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..gan import GAN
from ..support import progress
from ..support.digest import sha256_of
from .meaning import threshold_of
from .rule import Rule, Source
from .spec import Spec
from .view import View

DEFAULT_MODEL = "ViT-B-32"
PHRASINGS = ("{}", "a photo of {}", "a picture of {}")
ANYTHING = ("a photo", "a picture", "an image")  # what is not unwanted, where the user does not say it
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # of a repository of weights, in this order


@dataclass(frozen=True)
class Clip:
    """A pair of encoders. images: pictures as `view` gives them -> unit vectors [N, E]; texts -> unit vectors [M, E].
    scale: what cosines are multiplied by. size (H, W), mean, std: of the pictures. weights: the file."""

    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    scale: float
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path


class TextScore:
    """Samples [N, C, H, W] in the GAN's range -> float32 [N] in (0, 1) on the CPU: how much rather they show `words`
    than `against`. Higher is more like the words; the order means something, the value little.

    Raises:
        ValueError: the samples are no images, or the words are empty.
    """

    def __init__(self, clip: Clip, gan: GAN, words: str, against: str | None = None):
        if len(gan.sample_shape) != 3 or gan.sample_shape[0] not in (1, 3):
            raise ValueError(
                f"text: judges images in grey or colour, and this GAN's samples are {list(gan.sample_shape)}"
            )
        if not words.strip() or (against is not None and not against.strip()):
            raise ValueError("text: expected words, got none")
        self.clip = clip
        self.view = View(gan.image_range, clip.size, 3, (0.0, 1.0), clip.mean, clip.std, "bicubic")
        other = ANYTHING if against is None else _phrased(against)
        self.texts = torch.stack([_mean(clip.texts(_phrased(words))), _mean(clip.texts(other))])

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        cosines = self.clip.images(self.view(x).float()).float() @ self.texts.T.to(x.device)
        p = (self.clip.scale * cosines).softmax(1)[:, 0].cpu()
        if not torch.isfinite(p).all():
            raise ValueError(f"text: {self.clip.weights} gives values that are not finite")
        return p


def text_rule(spec: Spec, gan: GAN) -> Rule:
    """The rule of "text:WORDS?against=...&threshold=..."; above one half where no threshold is given.

    Raises:
        ValueError, ImportError: as of `load_clip` and `TextScore`.
    """
    threshold = threshold_of(spec) or 0.5
    clip = load_clip(spec.options.get("model", DEFAULT_MODEL), spec.options.get("weights"), gan.device)
    score = TextScore(clip, gan, spec.source.partition(":")[2], spec.options.get("against"))
    score(gan.sample(2))
    source = Source(spec.recorded, sha256_of(clip.weights), True)
    return Rule(lambda x: score(x) >= threshold, name=spec.recorded, score=score, source=source)


def text_rank(
    words: str, gan: GAN, against: str | None = None, model: str = DEFAULT_MODEL, weights: str | Path | None = None
) -> Callable[[Tensor], Tensor]:
    """A function that ranks: samples [N, C, H, W] in the GAN's range, on its device -> float32 [N] on the CPU, higher
    the more they look like `words`. To sort samples by, for marking; see `TextScore` for what the value means.

    Raises:
        ValueError, ImportError: as of `load_clip` and `TextScore`.
    """
    return TextScore(load_clip(model, weights, gan.device), gan, words, against)


def load_clip(
    model: str = DEFAULT_MODEL, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Clip:
    """A CLIP of open_clip, from weights that are on this machine.

    Args:
        model: its name in open_clip, or the JSON file of a configuration of your own.
        weights: a file, or a tag of open_clip's whose file is in the cache; any that is there when not given.

    Raises:
        ImportError: open_clip is not installed, or cannot be imported.
        ValueError: there is no such model, its weights are not here (which to download is said), or do not fit.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import, which reads it
    try:
        import open_clip
    except Exception as error:  # a torchvision of another build raises RuntimeError
        raise ImportError(
            f"text: needs open_clip: pip install 'atu-ext[text]' ({type(error).__name__}: {error})"
        ) from error
    if model.endswith(".json"):
        if not Path(model).is_file():
            raise ValueError(f"text: {model}: no such file")
        open_clip.add_model_config(model)
        model = Path(model).stem
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(
            f"text: open_clip has no model {model!r}; it has {', '.join(open_clip.list_models()[:40])} ..."
        )
    foreign = [key for key in ("hf_model_name", "hf_tokenizer_name") if config["text_cfg"].get(key)]
    if foreign:
        raise ValueError(
            f"text: {model} needs a tokenizer that would be downloaded; choose a model with open_clip's own"
        )
    path, tag = _weights(open_clip, model, weights)
    if tag:
        progress.log.info("text: %s with the weights %s", model, path)
    network: Any = open_clip.create_model(
        model, pretrained_text=False, force_quick_gelu=bool(tag.get("quick_gelu")), device="cpu"
    )
    try:
        open_clip.load_checkpoint(network, str(path), weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"text: the weights in {path} are not {model}'s, or cannot be read ({reason})") from error
    network = network.to(device).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(model)
    seen = {**open_clip.get_model_preprocess_cfg(network), **{k: tag[k] for k in ("mean", "std") if tag.get(k)}}
    size = seen["size"]

    def texts(words: Sequence[str]) -> Tensor:
        vectors: Tensor = network.encode_text(tokenizer(list(words)).to(device), normalize=True)
        return vectors.float()

    return Clip(
        images=lambda x: network.encode_image(x, normalize=True),
        texts=torch.no_grad()(texts),
        scale=float(network.logit_scale.detach().exp()),
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(seen["mean"]),
        std=tuple(seen["std"]),
        weights=path,
    )


def _phrased(words: str) -> list[str]:
    return [phrasing.format(words) for phrasing in PHRASINGS]


def _mean(vectors: Tensor) -> Tensor:
    """The mean direction [E] of unit vectors [M, E]."""
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def _weights(open_clip: Any, model: str, given: str | Path | None) -> tuple[Path, dict[str, Any]]:
    """(file of weights, open_clip's settings of them: none where the file was given)."""
    if given is not None and Path(given).is_file():
        return Path(given), {}
    tags = list(open_clip.list_pretrained_tags_by_model(model))
    if given is not None and str(given) not in tags:
        raise ValueError(f"text: weights: {given}: no such file, nor one of open_clip's for {model}: {', '.join(tags)}")
    candidates = tags if given is None else [str(given)]
    for name in candidates:
        config = open_clip.get_pretrained_cfg(model, name)
        path = _cached(config)
        if path is not None:
            return path, dict(config)
    where = [open_clip.get_pretrained_cfg(model, name).get("hf_hub") for name in candidates]
    repository = next((str(one).strip("/") for one in where if one), "the model's repository")
    raise ValueError(
        f"text: the weights of {model} are not on this machine, and atu downloads nothing. Download "
        f"{WEIGHT_FILES[0]} of {repository} (or what open_clip lists for {', '.join(candidates) or model}), and give "
        "it: --clip-weights FILE"
    )


def _cached(config: dict[str, Any]) -> Path | None:
    """The file of a tag's weights, where an earlier download left it."""
    repository, _, name = (config.get("hf_hub") or "").rpartition("/")
    if repository:
        from huggingface_hub import try_to_load_from_cache

        for file in dict.fromkeys([*([name] if name else []), *WEIGHT_FILES]):
            cached = try_to_load_from_cache(repository, file)
            if isinstance(cached, str):
                return Path(cached)
    if config.get("url"):
        path = Path("~/.cache/clip").expanduser() / Path(config["url"]).name
        return path if path.is_file() else None
    return None
