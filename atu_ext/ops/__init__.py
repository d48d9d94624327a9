"""The kernels' Python face: one file an op."""

from ._common import default_impl
from .bias_act import activations, bias_act
from .modulated_conv2d import conv2d_resample, modulated_conv2d
from .param_penalty import ParamPenalty, param_penalty
from .upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "ParamPenalty",
    "activations",
    "bias_act",
    "conv2d_resample",
    "default_impl",
    "downsample2d",
    "filter2d",
    "modulated_conv2d",
    "param_penalty",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
