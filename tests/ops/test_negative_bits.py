"""Tensors whose memory does not hold their values: views with a negative bit, and zeros that have no memory.

torch.Tensor.imag of a conjugate is such a view; torch._neg_view makes one of any layout.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty, bias_act, modulated_conv2d, param_penalty, upfirdn2d
from atu_ext.ops import modulated_passes as passes

FORMS = {
    "negative": lambda t: torch._neg_view(-t),
    "of a conjugate": lambda t: torch.complex(t, -t).conj().imag,
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalty(theta: Tensor, anchor: Tensor, fisher: Tensor, repel: Tensor) -> Tensor:
    return sum(param_penalty([theta], [anchor], [fisher], [repel]), theta.new_zeros(()))


# Of each op: the function and its tensors.
OPS = {
    "upfirdn2d": (lambda x, f: upfirdn2d(x, f, up=2, padding=1), [randn(1, 3, 5, 1), randn(3, 2)]),
    "bias_act": (lambda x, b: bias_act(x, b, act="swish"), [randn(2, 3, 5), randn(3)]),
    "linear": (lambda x, b: bias_act(x, b, act="lrelu"), [randn(1, 1), randn(1)]),
    "square_sum": (passes.square_sum, [randn(3, 2, 3, 1)]),
    "modulate": (lambda x, s: passes.modulate(x, s, False), [randn(2, 3, 5, 7), randn(2, 3)]),
    "epilogue": (
        lambda u, d, n, b: passes.epilogue(u, d, n, b, 3, 0.0, 1.5, 0.9),
        [randn(2, 3, 5, 1), randn(2, 3), randn(1, 1, 5, 1), randn(3)],
    ),
    "epilogue_scaled": (
        lambda t, u, d, n, b: passes.epilogue_scaled(t, u, d, n, b, 3, 0.0, 1.5, 0.9, True)[0],
        [randn(2, 3), randn(2, 3, 5, 1), randn(2, 3), randn(2, 1, 5, 1), randn(3)],
    ),
    "modulated_conv2d": (
        lambda x, w, s, n, b: modulated_conv2d(x, w, s, n, padding=1, bias=b, act="tanh"),
        [randn(1, 3, 5, 7), randn(2, 3, 3, 3), randn(1, 3), randn(1, 1, 5, 7), randn(2)],
    ),
    "param_penalty": (penalty, [randn(3, 5, seed=i) for i in range(4)]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients(name, form):
    """Each tensor in turn, and the gradient that arrives, against the same values in memory."""
    op, tensors = OPS[name]
    for i, t in enumerate(tensors):
        results = []
        for seen in (FORMS[form](t), FORMS[form](t).clone()):
            args = [seen if j == i else u.clone() for j, u in enumerate(tensors)]
            leaves = [a.requires_grad_() for j, a in enumerate(args) if name != "upfirdn2d" or j == 0]
            y = op(*args)
            dy = FORMS[form](torch.ones_like(y))
            dy = dy if seen is args[i] and seen._is_view() else dy.clone()
            grads = torch.autograd.grad(y, leaves, dy, create_graph=True, allow_unused=True)
            wanted = [g for g in grads if g is not None and g.requires_grad]
            total = sum((g.square().sum() for g in wanted), 0 * sum(t.sum() for t in leaves))
            second = torch.autograd.grad(total, leaves, allow_unused=True)
            results.append([y, *(g for g in (*grads, *second) if g is not None)])
        for ours, want in zip(*results, strict=True):
            torch.testing.assert_close(ours, want, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_in_place(form):
    u, d = FORMS[form](randn(2, 3, 5, 7)), randn(2, 3)
    settings = (None, None, 2, 0.2, 1.0, -1.0)
    want = passes.epilogue(u.clone(), d, *settings)
    if form != "zeros without memory":  # which nothing writes to
        passes.epilogue_(u, d, *settings)
        torch.testing.assert_close(u, want, rtol=0, atol=0)
    u, d = randn(2, 3, 5, 7), FORMS[form](randn(2, 3))
    want = passes.epilogue(u, d.clone(), *settings)
    passes.epilogue_(u, d, *settings)
    torch.testing.assert_close(u, want, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("adam", [False, True])
def test_param_penalty_takes_gradients_of_any_form(adam, form):
    ends = []
    for make in (FORMS[form], lambda t: FORMS[form](t).clone()):
        p = torch.nn.Parameter(randn(1, 1))
        held = ParamPenalty([p], fisher=[torch.ones_like(p)], anchor=[FORMS[form](randn(1, 1, seed=1))])
        optimizer = torch.optim.Adam([p], lr=0.1)
        for _ in range(3):
            p.grad = make(randn(1, 1, seed=2))
            if adam:
                held.adam_step_(optimizer, 1.0)
            else:
                held.add_grad_(1.0)
        ends.append((p.detach(), p.grad))
    for ours, want in zip(*ends, strict=True):
        torch.testing.assert_close(ours, want, rtol=0, atol=0)


def test_param_penalty_refuses_such_parameters():
    with pytest.raises(ValueError, match=r"params.0.: expected a tensor whose memory holds its values"):
        ParamPenalty([torch._neg_view(torch.ones(3))])
    p = torch.nn.Parameter(torch.ones(3))
    held = ParamPenalty([p], repel_from=[torch.zeros(3)])
    p.data = torch._neg_view(torch.ones(3))
    with pytest.raises(ValueError, match=r"params.0.: expected a tensor whose memory"):
        held.value()
