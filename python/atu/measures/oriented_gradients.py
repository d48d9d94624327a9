"""What an image's edges look like: features of any image, of no network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS, GRIDS = 8, (7, 3)  # of a histogram of oriented gradients; of cells over an image, finer and coarser
FEATURES = DIRECTIONS * sum(side * side for side in GRIDS)
LARGEST = 64  # pixels of an image's longer side, before gradients are taken
FAINT = 0.05  # gradients, as shares of the range of values, below which a cell's contrast is not made up for


def oriented_gradients(x: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), of 7 x 7 and 3 x 3 cells and 8 signed directions
    each; at a pixel the gradient of the channel with the steepest.

    Written out, as those of image libraries take an image at a time, and no gradients back.

    Args:
        x: images [N, C, H, W]; such as have more than 64 pixels a side are made smaller first. image_range: of values.

    Returns:
        float32 [N, 464], differentiable in x.
    """
    x = x.float() / (image_range[1] - image_range[0])
    height, width = x.shape[2:]
    if max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
        x = F.adaptive_avg_pool2d(x, (max(round(height * scale), 1), max(round(width * scale), 1)))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    right, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    steepest = (right.square() + down.square()).argmax(1, keepdim=True)
    right, down = right.gather(1, steepest), down.gather(1, steepest)
    strength = (right.square() + down.square() + 1e-12).sqrt()
    angles = torch.arange(DIRECTIONS, device=x.device).view(1, -1, 1, 1) * (2 * torch.pi / DIRECTIONS)
    along = (right * angles.cos() + down * angles.sin()) / strength  # cosine of the angle to each direction
    votes = strength * along.clamp(min=0) ** 3
    found = []
    for side in GRIDS:
        cells = F.adaptive_avg_pool2d(votes, side)
        found.append((cells / (cells.square().sum(1, keepdim=True) + FAINT**2).sqrt()).flatten(1))
    return torch.cat(found, 1)
