"""Convolution with FIR up- or downsampling round it, on torch's convolution and upfirdn2d.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .dispatch import on_cuda, wants_reference
from .layout import Padding, around_filter, filter_size, four_sides, memory_format
from .upfirdn2d import check_filter, upfirdn2d


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_weight: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Convolution with FIR up- or downsampling round it: zero-insert, filter, convolve, keep every `down`-th pixel.

    Args:
        x: [N, C_in, H, W].
        w: [C_out, C_in, kh, kw].
        f: filter of `setup_filter` for the resampling; None is the identity.
        up, down: factors.
        padding: int, [x, y] or [x0, x1, y0, y1], with respect to the upsampled image; the filter's own border is added.
        flip_weight: True is torch's convention (correlation), False convolves.
        impl: of the resampling.

    Returns:
        [N, C_out, H', W'], possibly channels-last on the CPU.

    Raises:
        ValueError, TypeError: as `upfirdn2d` of its arguments, and torch's convolution of shapes that do not fit.
    """
    check_filter("f", f)
    pads = conv_padding(padding, f, up, down)
    if x.is_cpu and not on_cuda(x) and not wants_reference(impl):
        layout = memory_format(prefers_channels_last(x, w))
        x, w = x.to(memory_format=layout), w.to(memory_format=layout)
    if 0 in x.shape[1:]:
        return _conv_of_nothing(x, w, f, up, down, pads)
    if up > 1:
        x = _upsample_conv(x, w, f, up, pads, flip_weight, impl)
        return x if down == 1 else upfirdn2d(x, None, down=down, impl=impl)
    x, stride, padding = conv_input(x, w, f, down, pads, impl)
    return F.conv2d(x, w if flip_weight else w.flip([2, 3]), stride=stride, padding=padding)


def prefers_channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether torch's convolution on the CPU is quicker channels-last, which it is given by its input's layout.

    Up to twice with few channels; but it reorders the weight at every call, and where that is much larger than the
    image its gradient takes up to three times as long (benchmarks/trials-ops.csv).
    """
    return w.numel() <= 2 * x.numel()


def conv_padding(padding: int | Sequence[int], f: Tensor | None, up: int, down: int) -> Padding:
    """Padding with the filter's own border, where something is resampled."""
    pads = four_sides(padding)
    pads = around_filter(pads, f, up=(up, up)) if up > 1 else pads
    return around_filter(pads, f, down=(down, down)) if down > 1 else pads


def _upsample_conv(
    x: Tensor, w: Tensor, f: Tensor | None, up: int, padding: Padding, flip_weight: bool, impl: str
) -> Tensor:
    """FIR-filtered zero-insertion by `up`, then convolution, as one transposed convolution and one FIR filter."""
    kh, kw = w.shape[2:]
    px0, px1, py0, py1 = padding
    if kh == kw == 1:
        return upfirdn2d(F.conv2d(x, w), f, up=up, padding=padding, gain=up**2, impl=impl)
    # A transposed convolution convolves; correlation asks for a flipped kernel. It brings a border of kernel - 1 along.
    w = w.flip([2, 3]) if flip_weight else w
    x = F.conv_transpose2d(x, w.transpose(0, 1), stride=up)
    rest = [px0 - (kw - 1), px1 - (kw - up), py0 - (kh - 1), py1 - (kh - up)]
    return upfirdn2d(x, f, padding=rest, gain=up**2, impl=impl)


def _conv_of_nothing(x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: Padding) -> Tensor:
    """What a convolution of images without channels or pixels gives, of which torch's makes other shapes or none."""
    px0, px1, py0, py1 = padding
    (fh, fw), (kh, kw) = filter_size(f), w.shape[2:]
    height = x.shape[2] * up + py0 + py1 - (fh - 1) - (kh - 1)
    width = x.shape[3] * up + px0 + px1 - (fw - 1) - (kw - 1)
    zeros = x.new_zeros(x.shape[0], w.shape[0], max(0, -(-height // down)), max(0, -(-width // down)))
    return zeros + 0 * (x.sum() + w.sum())


def conv_input(
    x: Tensor, w: Tensor, f: Tensor | None, down: int, pads: Padding, impl: str
) -> tuple[Tensor, int, list[int]]:
    """x filtered, padded and cropped as far as a convolution cannot do it, and that one's stride and padding [y, x]."""
    px0, px1, py0, py1 = pads
    if down > 1 and w.shape[2:] == (1, 1):
        return upfirdn2d(x, f, down=down, padding=pads, impl=impl), 1, [0, 0]
    if down > 1 or (f is not None and f.numel() > 1):
        return upfirdn2d(x, f, padding=pads, impl=impl), down, [0, 0]
    if px0 == px1 and py0 == py1 and px0 >= 0 and py0 >= 0:
        return x, 1, [py0, px0]
    return F.pad(x, pads), 1, [0, 0]
