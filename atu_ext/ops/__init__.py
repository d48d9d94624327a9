"""The kernels' Python face: one file an op."""

from .activations import activations
from .bias_act import bias_act
from .conv2d_resample import conv2d_resample
from .dispatch import default_impl
from .modulated_conv2d import modulated_conv2d
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
