"""Training a classifier on the user's images: a folder a class, or the marks of `atu label`.

A share of each class is held out before training and never learned from: its images say how good the classifier is,
and those figures go into its file. Copies of one image are left out first, so that none is on both sides.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.images import is_image, open_image
from ..formats.own_model import read_states
from ..formats.tensors import fill
from ..measures.shares import share_of
from ..networks.classifier import ConvClassifier
from ..networks.timm_classifier import TimmClassifier, backbone_input
from ..support import progress
from ..support.files import write_json
from ..support.seeding import fork_rng
from .classifier import Classifier
from .errors import confusion

MIN_CLASS_IMAGES = 10  # images of a class: of fewer, those that are held out say nothing
MANY_CLASS_IMAGES = 100
DEFAULT_SIDES = (16, 64)  # smallest and largest side of the images that the small network sees
BATCH_SIZE = 64
DEFAULT_STEPS = (400, 4000)  # fewest and most of training: 40 passes, within these
AUGMENTATIONS = ("affine", "flip", "light")


@dataclass(frozen=True)
class Images:
    """Labelled images. images: uint8 [N, C, R, R]. labels: int64 [N]. copies: how many images were left out."""

    images: Tensor
    labels: Tensor
    classes: list[str]
    copies: int


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train.

    Attributes:
        size: pixels a side; None: by the images or the backbone.
        held_out: share of each class to test on.
        augment: names of AUGMENTATIONS.
        steps: of 64 images; None: 40 passes, 400 to 4,000 steps.
        backbone, weights: a network of timm, and the file of its weights.
        device: as torch names it.
    """

    size: int | None = None
    held_out: float = 0.2
    augment: Sequence[str] = ("affine", "light")
    steps: int | None = None
    backbone: str | None = None
    weights: Path | None = None
    seed: int = 0
    device: str | None = None


def train_folder(folder: str | Path, out: str | Path, plan: TrainingPlan) -> tuple[Path, dict[str, Any]]:
    """Train on FOLDER/CLASS/*.png; write the classifier, and its figures as JSON beside it.

    Args:
        out: a file ending in .safetensors, or a folder, in which it is called classifier.safetensors.

    Returns:
        The classifier's path and the JSON: classes, images, held_out, accuracy (with its 95 % interval), by_class,
        confusion (rows: what it is, columns: what it is called), majority, seed, log.

    Raises:
        ValueError: fewer than two classes, fewer than ten different images of one, an image under two classes, files
            that cannot be read, settings that do not fit, a file that is there already.
        ImportError: timm is asked for and missing.
    """
    path = check_plan(out, plan)
    device = torch.device(plan.device or "cpu")
    with fork_rng(device):
        torch.manual_seed(plan.seed)
        size, network = _network(folder, plan)
        data = read_classes(folder, size)
        train, held = split(data.labels, plan.held_out, plan.seed)
        module = network(len(data.classes), data.images.shape[1]).to(device)
        rows = _train(module, data.images[train], data.labels[train], plan)
    classifier = Classifier(module, data.classes, name=path.stem)
    parts = [confusion(classifier, to_float(data.images[i]).to(device), data.labels[i]) for i in held.split(250)]
    classifier.confusion = torch.stack(parts).sum(0)
    results = _results(classifier, data, len(train), plan, rows)
    classifier.to("cpu").save(path)
    write_json(path.with_suffix(".json"), results)
    return path, results


def check_plan(out: str | Path, plan: TrainingPlan) -> Path:
    """The file to write; raises ValueError where it is there already, or the plan cannot be right."""
    out = Path(out)
    path = out if out.suffix == ".safetensors" else out / "classifier.safetensors"
    for there in (path, path.with_suffix(".json")):
        if there.exists():
            raise ValueError(f"out: {there} is there already; give another name")
    unknown = [name for name in plan.augment if name not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"augment: expected names of {', '.join(AUGMENTATIONS)} joined by commas, got {unknown[0]!r}")
    if not 0 < plan.held_out < 1:
        raise ValueError(f"held_out: expected a share between 0 and 1, got {plan.held_out:g}")
    if (plan.backbone is None) != (plan.weights is None):
        raise ValueError("backbone: a backbone of timm needs the file of its weights, and weights need a backbone")
    if plan.backbone is None and plan.size is not None and (plan.size < 8 or plan.size % 8):
        raise ValueError(f"size: expected a multiple of 8, got {plan.size}")
    return path


# --- reading


def class_folders(folder: str | Path) -> dict[str, list[Path]]:
    """Image files by class, one for each folder in FOLDER that holds any, at any depth.

    Raises:
        ValueError: there are fewer than two such folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"FOLDER: expected a folder with a folder a class, but {folder} is not a folder")
    folders = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
        files = sorted(file for file in child.rglob("*") if is_image(file))
        if files:
            folders[child.name] = files
    if len(folders) < 2:
        raise ValueError(
            f"FOLDER: expected at least two folders of images in {folder}, one a class (unwanted and good, say), got "
            f"{', '.join(folders) or 'none'}"
        )
    return folders


def usual_side(files: dict[str, list[Path]]) -> int:
    """Median of the shorter sides of up to 50 images a class, up to a multiple of 8, within DEFAULT_SIDES."""
    sides = [
        min(open_image(file, str(file)).size) for paths in files.values() for file in paths[:: -(-len(paths) // 50)]
    ]
    return min(max(-(-int(median(sides)) // 8) * 8, DEFAULT_SIDES[0]), DEFAULT_SIDES[1])


def read_classes(folder: str | Path, size: int) -> Images:
    """All images, cut to the square in their middle and scaled; grey where all of them are.

    Raises:
        ValueError: as of `train_folder`.
    """
    files = class_folders(folder)
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    seen: dict[str, tuple[int, Path]] = {}
    copies = 0
    total = sum(map(len, files.values()))
    with progress.bar("images", total) as bar:
        for label, paths in enumerate(files.values()):
            for path in paths:
                bar.update()
                array = _square(open_image(path, str(path)), size)
                mark = hashlib.sha256(array.tobytes()).hexdigest()
                if mark in seen:
                    other, first = seen[mark]
                    if other != label:
                        raise ValueError(f"FOLDER: {path} and {first} show the same under two classes")
                    copies += 1
                    continue
                seen[mark] = label, path
                pixels.append(array)
                labels.append(label)
    counts = [labels.count(label) for label in range(len(files))]
    for name, count in zip(files, counts, strict=True):
        if count < MIN_CLASS_IMAGES:
            raise ValueError(
                f"FOLDER: {name} has {count} different images, and at least {MIN_CLASS_IMAGES} are needed to learn "
                f"from some and test on others; {MANY_CLASS_IMAGES} and more are better"
            )
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    if bool((images == images[:, :1]).all()):
        images = images[:, :1]
    return Images(images.contiguous(), torch.tensor(labels), list(files), copies)


def _square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3] of the middle of an image."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    side = min(image.size)
    left, top = (image.size[0] - side) // 2, (image.size[1] - side) // 2
    image = image.convert("RGB")
    if side != size or image.size[0] != image.size[1]:
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(indices to learn from, indices held out): of each class its share, at least three, at most half."""
    rng = torch.Generator().manual_seed(seed)
    train, held = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        count = min(max(round(share * len(members)), 3), len(members) // 2)
        held.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(held)


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


# --- training


def _network(folder: str | Path, plan: TrainingPlan) -> tuple[int, Any]:
    """(size of the images, (classes, channels) -> network)."""
    files = class_folders(folder)
    if plan.backbone is None:
        size = plan.size or usual_side(files)
        return size, lambda classes, channels: ConvClassifier(classes, size, channels)
    usual, mean, std = backbone_input(plan.backbone)
    side = plan.size or usual
    assert plan.weights is not None
    states = read_states(plan.weights)
    state = next(iter(states.values()), {})

    def build(classes: int, channels: int) -> nn.Module:
        network = TimmClassifier(classes, plan.backbone or "", side, channels, mean, std)
        names = network.backbone.state_dict().keys()
        # Published weights end in a classifier of their own classes, which the backbone here lacks.
        weights = {name: value for name, value in state.items() if name in names or not _is_head(name)}
        fill(network.backbone, weights, f"weights: {plan.weights}")
        return network

    build(2, 3)
    return side, build


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in ("fc", "head", "classifier", "head_dist") or name.startswith("head.")


def random_affine(
    x: Tensor, degrees: float = 12.0, shift: float = 0.08, scale: float = 0.12, shear: float = 0.2
) -> Tensor:
    """Each image of [N, C, H, W] rotated, shifted (fraction of its size), scaled and sheared at random.

    Pixels from outside take the value at the border.
    """
    n = x.shape[0]
    angle = (torch.rand(n) * 2 - 1) * (degrees * torch.pi / 180)
    zoom, slant = 1 + (torch.rand(n) * 2 - 1) * scale, (torch.rand(n) * 2 - 1) * shear
    offset = (torch.rand(n, 2) * 2 - 1) * (2 * shift)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos, slant * cos - sin, offset[:, 0]], 1),
        torch.stack([sin, slant * sin + cos, offset[:, 1]], 1),
    ]
    theta = torch.stack(rows, 1).to(x.device)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def augmented(x: Tensor, names: Sequence[str]) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], each changed at random: "affine" (turned, shifted, scaled, sheared a little),
    "flip" (left and right), "light" (brighter or darker, more or less contrast)."""
    n = len(x)
    if "affine" in names:
        x = random_affine(x)
    if "flip" in names:
        x = torch.where((torch.rand(n) < 0.5)[:, None, None, None].to(x.device), x.flip(3), x)
    if "light" in names:
        light, contrast = (torch.rand(2, n, 1, 1, 1) - 0.5).to(x.device)
        x = ((x + 1) * (1 + 0.5 * contrast) - 1 + 0.5 * light).clamp(-1, 1)
    return x


def _train(module: nn.Module, images: Tensor, labels: Tensor, plan: TrainingPlan) -> list[dict[str, Any]]:
    """In place: cross entropy on batches in which every class is as frequent; one row each twentieth of the steps."""
    device = next(module.parameters()).device
    steps = plan.steps or min(max(40 * len(labels) // BATCH_SIZE, DEFAULT_STEPS[0]), DEFAULT_STEPS[1])
    weights = 1.0 / labels.bincount()[labels].double()
    rows, start = [], time.monotonic()
    learned = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    module.train()
    with progress.bar("classifier", steps) as bar:
        for step in range(1, steps + 1):
            index = torch.multinomial(weights, min(BATCH_SIZE, len(labels)), replacement=True)
            x = augmented(to_float(images[index]).to(device), plan.augment)
            loss = F.cross_entropy(module(x), labels[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(dict(loss=float(loss.detach())))
            if step % max(steps // 20, 1) == 0 or step == steps:
                rows.append(dict(step=step, loss=float(loss.detach()), seconds=round(time.monotonic() - start, 1)))
    return rows


def _results(
    classifier: Classifier, images: Images, learned_from: int, plan: TrainingPlan, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    counts = classifier.confusion
    assert counts is not None
    sizes = counts.sum(1)
    data: dict[str, Any] = dict(classes=images.classes, held_out=int(sizes.sum()), copies_left_out=images.copies)
    data["images"] = {name: int((images.labels == index).sum()) for index, name in enumerate(images.classes)}
    data["accuracy"] = asdict(share_of(int(counts.diagonal().sum()), int(sizes.sum())))
    data["balanced_accuracy"] = float((counts.diagonal() / sizes).mean())
    data["by_class"] = classifier.errors()
    data["confusion"] = counts.tolist()
    data["majority"] = int(sizes.max()) / int(sizes.sum())
    data["learned_from"] = learned_from
    data.update(size=images.images.shape[-1], channels=images.images.shape[1], augment=list(plan.augment))
    data.update(backbone=plan.backbone, seed=plan.seed, torch=torch.__version__, python=platform.python_version())
    data.update(machine=platform.machine(), log=rows)
    return data


def remarks(data: dict[str, Any]) -> list[str]:
    """Sentences about figures that need attention."""
    sentences = []
    few = [f"{name} ({count})" for name, count in data["images"].items() if count < MANY_CLASS_IMAGES]
    if few:
        sentences.append(
            f"few images of {', '.join(few)}: {MANY_CLASS_IMAGES} and more make it better, and the figures surer"
        )
    if data["copies_left_out"]:
        sentences.append(f"{data['copies_left_out']} copies of other images were left out")
    low = data["accuracy"]["ci95"][0]
    if low <= data["majority"]:
        sentences.append(
            f"that is not surely better than to say the most frequent class always ({100 * data['majority']:.0f} %): "
            "do not use it as it is"
        )
    return sentences
