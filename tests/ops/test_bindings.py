"""What the compiled module says of arguments that are not what its functions read.

The ops never pass such: these calls go past them. Every call is refused before a kernel runs, so no address is used.
"""

from __future__ import annotations

from typing import Any

import pytest

from atu_ext import _native

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

CPU = -1  # the stream
SIZE = (1, 4, 3)
OUTPUT = (2, 0.2, 1.0, -1.0)
LAYOUT = (0, 0, 0, 0, 0, 0, 64)
IMAGE = (1, 2, 3, 4)


def epilogue(inputs: Any = (0, 0, 0, 0), output: Any = OUTPUT, size: Any = SIZE, dtype: int = 0) -> None:
    _native._C.epilogue(inputs, output, 0, dtype, size, False, 0, CPU)


def epilogue_grad(grads: Any) -> None:
    _native._C.epilogue_grad((0, 0, 0, 0), OUTPUT, 0, grads, 0, SIZE, False, 0, 64, 0, CPU)


def epilogue_grad2(incoming: Any = (0,) * 4, grads: Any = (0,) * 5) -> None:
    _native._C.epilogue_grad2((0, 0, 0, 0), OUTPUT, 0, incoming, grads, 0, SIZE, False, 0, 64, 0, CPU)


def upfirdn2d(x_size: Any = IMAGE, x_stride: Any = IMAGE, y_size: Any = IMAGE, f_size: Any = (2, 2)) -> None:
    _native._C.upfirdn2d(0, 0, 0, 0, False, x_size, x_stride, y_size, IMAGE, f_size, 1, 1, 1, 1, 0, 0, False, 1.0, CPU)


def bias_act(dtype: int = 0, act: int = 0) -> None:
    _native._C.bias_act(0, 0, 0, dtype, act, 0.0, 1.0, -1.0, 0, 1, 1, CPU)


REFUSED = [
    (lambda: epilogue(inputs=(0, 0, 0)), ValueError, "epilogue: inputs: expected 4 elements, got 3"),
    (lambda: epilogue(inputs=(0, 0.5, 0, 0)), TypeError, r"epilogue: inputs\[1\]: expected an int, got 0.5"),
    (lambda: epilogue(inputs=(0, 1 << 70, 0, 0)), TypeError, r"epilogue: inputs\[1\]: expected an int, got 1180"),
    (lambda: epilogue(output=OUTPUT[:3]), ValueError, "epilogue: output: expected 4 elements, got 3"),
    (lambda: epilogue(output=(2, 0.2, "1", -1.0)), TypeError, r"epilogue: output\[2\]: expected a number, got '1'"),
    (lambda: epilogue(output=(9, 0.2, 1.0, -1.0)), ValueError, "epilogue: output: expected 0 to 8, got 9"),
    (lambda: epilogue(size=(1, 4, 3, 5)), ValueError, "epilogue: size: expected 3 elements, got 4"),
    (lambda: epilogue(size=(1, None, 3)), TypeError, r"epilogue: size\[1\]: expected an int, got None"),
    (lambda: epilogue(dtype=4), ValueError, "epilogue: dtype: expected 0 to 3, got 4"),
    (lambda: epilogue_grad(()), ValueError, "epilogue_grad: grads: expected 4 elements, got 0"),
    (lambda: epilogue_grad2(incoming=(0,) * 5), ValueError, "epilogue_grad2: incoming: expected 4 elements, got 5"),
    (lambda: epilogue_grad2(grads=(0,) * 4), ValueError, "epilogue_grad2: grads: expected 5 elements, got 4"),
    (lambda: upfirdn2d(x_size=(1, 2, 3)), ValueError, "upfirdn2d: x_size: expected 4 elements, got 3"),
    (lambda: upfirdn2d(x_stride=(1, 2, 3, "w")), TypeError, r"upfirdn2d: x_stride\[3\]: expected an int, got 'w'"),
    (lambda: upfirdn2d(y_size=()), ValueError, "upfirdn2d: y_size: expected 4 elements, got 0"),
    (lambda: upfirdn2d(f_size=(2, 2, 2)), ValueError, "upfirdn2d: f_size: expected 2 elements, got 3"),
    (lambda: bias_act(dtype=-1), ValueError, "bias_act: dtype: expected 0 to 3, got -1"),
    (lambda: bias_act(act=99), ValueError, "bias_act: act: expected 0 to 8, got 99"),
    (
        lambda: _native._C.modulate(0, 0, 0, 0, (1, 2), False, False, CPU),
        ValueError,
        "modulate: size: expected 3 elements, got 2",
    ),
    (
        lambda: _native._C.param_penalty_grad(0, LAYOUT[1:], (0,) * 5, 0, 0, CPU),
        ValueError,
        "param_penalty_grad: layout: expected 7 elements, got 6",
    ),
    (
        lambda: _native._C.param_penalty_grad(0, LAYOUT, (0, 0, 0, 0, []), 0, 0, CPU),
        TypeError,
        r"param_penalty_grad: tables\[4\]: expected an int, got \[\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_the_function_the_argument_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_number_may_be_an_int():
    epilogue(output=(2, 0, 1, -1), size=(0, 4, 3))
