"""A classifier on a backbone of timm (https://github.com/huggingface/pytorch-image-models), which is kept as it is.

timm is the extra `timm`. Nothing is downloaded: the backbone's weights come from a file, and then lie in the
classifier's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _timm() -> Any:
    try:
        import timm
    except Exception as error:  # a torchvision of another build raises RuntimeError
        raise ImportError(
            f"backbone: needs timm: pip install 'atu-ext[timm]' ({type(error).__name__}: {error})"
        ) from error
    return timm


def backbone_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(resolution, mean, std of values in [0, 1]) that a backbone was trained with.

    Raises:
        ImportError: timm is not installed. ValueError: it has no such backbone.
    """
    timm = _timm()
    if name not in timm.list_models():
        near = [one for one in timm.list_models() if one.startswith(name[:6])] or timm.list_models()
        raise ValueError(f"backbone: timm has no {name!r}; it has {', '.join(near[:12])} ...")
    config = timm.create_model(name, pretrained=False, num_classes=0).default_cfg
    return int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"])


class TimmClassifier(nn.Module):
    """Images [N, img_channels, R, R] in [-1, 1] to logits [N, num_classes]: a frozen backbone and a linear head.

    Args:
        backbone: a name of timm's; the network is built without weights. img_resolution: R. img_channels: 1 or 3; grey
            images are shown as colour ones. mean, std: that the backbone expects, of values in [0, 1].

    Raises:
        ImportError: timm is not installed. ValueError: it has no such backbone.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str,
        img_resolution: int,
        img_channels: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ):
        super().__init__()
        timm = _timm()
        if not isinstance(backbone, str) or backbone not in timm.list_models():
            raise ValueError(f"backbone: timm has no {backbone!r}")
        self.init_kwargs: dict[str, Any] = dict(num_classes=num_classes, backbone=backbone)
        self.init_kwargs.update(img_resolution=img_resolution, img_channels=img_channels)
        self.init_kwargs.update(mean=[float(v) for v in mean], std=[float(v) for v in std])
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0).requires_grad_(False)
        self.num_features = int(self.backbone.num_features)
        self.head = nn.Linear(self.num_features, num_classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(self.init_kwargs["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.init_kwargs["std"])[:, None, None], persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> TimmClassifier:
        """The head's mode; the backbone is always in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Outputs of the backbone without its classifier, [N, num_features]; differentiable in x."""
        seen = ((x + 1) / 2).expand(-1, 3, -1, -1)
        return self.backbone((seen - self.mean) / self.std).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
