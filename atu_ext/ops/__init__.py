"""The kernels' Python face: one file an op."""

from .bias_act import bias_act
from .modulated_conv2d import modulated_conv2d
from .param_penalty import ParamPenalty, param_penalty
from .upfirdn2d import setup_filter, upfirdn2d

__all__ = ["ParamPenalty", "bias_act", "modulated_conv2d", "param_penalty", "setup_filter", "upfirdn2d"]
