"""ParamPenalty and param_penalty against closed forms and sums taken in float64 over the concatenated weights."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from atu_ext import _native
from atu_ext.ops import ParamPenalty, param_penalty

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

# Without the (slow) tracing of forward and backward.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
# Empty ones first, in the middle and last; one element; past a chunk of 16384; no dimension at all.
SHAPES = [(0, 3), (3, 4), (), (1,), (5, 0), (16384 * 2 + 7,), (8, 4, 3, 3), (2, 0)]


def tensors(seed: int, dtype=torch.float32, shapes=SHAPES) -> list[Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=gen).to(dtype) for shape in shapes]


def problem(dtype=torch.float32, models=1):
    params = [p.requires_grad_() for p in tensors(0, dtype)]
    repel = [tensors(10 + k, dtype) for k in range(models)]
    return params, tensors(1, dtype), [t.abs() for t in tensors(2, dtype)], repel


def flat(ts) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in ts])


def plain_values(params, anchor, fisher, repel) -> tuple[float, float]:
    theta = flat(params)
    ewc = 0.5 * float((flat(fisher) * (theta - flat(anchor)) ** 2).sum())
    return ewc, sum(float(((theta - flat(m)) ** 2).sum()) for m in repel) / len(repel)


@pytest.fixture(params=_native._C.cpu_isas() if _native._C else ["none"])
def isa(request):
    before = _native._C.cpu_isa()
    _native._C.set_cpu_isa(request.param)
    yield request.param
    _native._C.set_cpu_isa(before)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(dtype, models, impl, isa):
    params, anchor, fisher, repel = problem(dtype, models)
    penalty = ParamPenalty(params, anchor, fisher, repel, impl=impl)
    want = plain_values(params, anchor, fisher, repel)
    # One anchor: double sums of exact double terms. Several: theta_bar is rounded to the dtype (see _fold); that error
    # is random in sign over 30,000 weights.
    rtol = 1e-12 if models == 1 or dtype == torch.float64 else 1e-8
    assert penalty.value() == pytest.approx(want, rel=rtol)
    ewc, distance = penalty.values()
    assert float(ewc.sum()) == pytest.approx(want[0], rel=1e-12)
    assert float(distance.sum()) == pytest.approx(want[1], rel=rtol)
    for t, p in enumerate(params):
        each = plain_values([p], [anchor[t]], [fisher[t]], [[m[t]] for m in repel])
        assert (float(ewc[t]), float(distance[t])) == pytest.approx(each, rel=1e-6, abs=1e-12)

    existing = tensors(5, dtype)
    for i, p in enumerate(params):
        p.grad = None if i == 1 else existing[i].clone()
    penalty.add_grad_(3.0, 0.25)
    theta = flat(params)
    mean = sum(flat(m) for m in repel) / models
    base = flat([torch.zeros_like(p) if i == 1 else existing[i] for i, p in enumerate(params)])
    gradient = base + 3.0 * flat(fisher) * (theta - flat(anchor)) + 0.25 * 2 * (theta - mean)
    eps = torch.finfo(dtype).eps
    # A handful of roundings of terms no larger than about 100.
    torch.testing.assert_close(flat([p.grad for p in params]), gradient, rtol=8 * eps, atol=100 * eps)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_reductions(impl):
    params, _, _, repel = problem(models=2)
    start = tensors(7)
    per_tensor = [plain_values([p], [p], [p], [[m[t]] for m in repel])[1] for t, p in enumerate(params)]
    at_start = plain_values(start, start, start, repel)[1]
    counts = [p.numel() for p in params]
    filled = sum(n > 0 for n in counts)
    want = {
        "sum": sum(per_tensor),
        "tensor_mean": sum(d / n for d, n in zip(per_tensor, counts, strict=True) if n) / filled,
        "relative": sum(per_tensor) / at_start,
    }
    for reduction, value in want.items():
        penalty = ParamPenalty(params, anchor=start, repel_from=repel, reduction=reduction, impl=impl)
        ewc, distance = penalty.value()
        assert ewc == 0
        assert distance == pytest.approx(value, rel=1e-7)
        assert penalty.start_distance == pytest.approx(at_start, rel=1e-7)
        for p in params:
            p.grad = None
        penalty.add_grad_(distance_weight=1.0)
        norm = math.sqrt(float((flat([p.grad for p in params]) ** 2).sum()))
        assert penalty.distance_grad_norm() == pytest.approx(norm, rel=1e-6)
        # Directional derivative of the (quadratic) value by an exact central difference.
        step = tensors(8)
        slope = float((flat([p.grad for p in params]) * flat(step)).sum())
        ends = []
        with torch.no_grad():
            for sign in (1, -2):
                for p, s in zip(params, step, strict=True):
                    p += sign * 0.01 * s
                ends.append(penalty.value()[1])
            for p, s in zip(params, step, strict=True):
                p += 0.01 * s
        assert (ends[0] - ends[1]) / 0.02 == pytest.approx(slope, rel=1e-3, abs=1e-4 * value)


def test_relative_is_one_at_the_start():
    params, _, _, repel = problem(models=3)
    assert ParamPenalty(params, repel_from=repel, reduction="relative").value()[1] == pytest.approx(1, rel=1e-12)


def test_threads_and_repeats_agree_bitwise():
    params, anchor, fisher, repel = problem()
    params.append(torch.randn(200_000, generator=torch.Generator().manual_seed(3)).requires_grad_())
    for ts in (anchor, fisher, *repel):
        ts.append(torch.rand(200_000, generator=torch.Generator().manual_seed(len(ts))))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            penalty = ParamPenalty(params, anchor, fisher, repel)
            for p in params:
                p.grad = None
            penalty.add_grad_(1.0, 1.0)
            results.append((*penalty.values(), flat([p.grad for p in params])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_layouts_offsets_and_new_storage():
    shape = (6, 4, 3, 3)
    store = torch.randn(6 * 36 + 1)
    unaligned = store[1:].view(shape)  # one element past the allocation's alignment
    channels_last = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    pointwise = torch.randn(5, 7, 1, 1)
    params = [unaligned.requires_grad_(), channels_last.requires_grad_(), pointwise.requires_grad_()]
    anchor, fisher, repel = ([torch.rand(p.shape) for p in params] for _ in range(3))
    penalty = ParamPenalty(params, anchor, fisher, [repel])
    for _ in range(2):
        # The second gradient is laid out in another way than its parameter.
        params[1].grad = torch.zeros(shape)
        params[0].grad = params[2].grad = None
        penalty.add_grad_(2.0, 0.5)
        assert penalty.value() == pytest.approx(plain_values(params, anchor, fisher, [repel]), rel=1e-12)
        for p, a, f, r in zip(params, anchor, fisher, repel, strict=True):
            torch.testing.assert_close(p.grad, (2 * f * (p - a) + (p - r)).detach(), rtol=1e-5, atol=1e-6)
        for p in params:  # new storage, as after a load or a move
            p.data = torch.randn_like(p)
    with pytest.raises(ValueError, match=r"params\[1\]: expected"):
        params[1].data = torch.randn(shape)
        penalty.value()


def unpickled(penalty: ParamPenalty) -> ParamPenalty:
    file = io.BytesIO()
    torch.save(penalty, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
def test_a_copy_reads_its_own_arrays(duplicate):
    params, anchor, fisher, (repel,) = problem()
    penalty = ParamPenalty(params, anchor, fisher, repel)
    before = penalty.value()
    twin = duplicate(penalty)
    for ts in (twin.anchor, twin.fisher, twin.theta_bar):
        for t in ts:
            t.mul_(3)
    changed = [[3 * t for t in ts] for ts in (anchor, fisher, repel)]
    assert twin.value() == pytest.approx(plain_values(params, *changed[:2], [changed[2]]), rel=1e-12)
    assert penalty.value() == before
    twin.add_grad_(2.0, 0.5)
    for p, q, a, f, r in zip(params, twin.params, *changed, strict=True):
        assert p.grad is None
        torch.testing.assert_close(q.grad, (2 * f * (p - a) + (p - r)).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["anchor", "fisher", "theta_bar"])
def test_arrays_with_new_storage(name):
    params, anchor, fisher, (repel,) = problem()
    penalty = ParamPenalty(params, anchor, fisher, repel)
    penalty.value()
    lists = dict(anchor=anchor, fisher=fisher, theta_bar=repel)
    lists[name][3] = torch.tensor([5.0])
    getattr(penalty, name)[3].data = torch.tensor([5.0])
    want = plain_values(params, lists["anchor"], lists["fisher"], [lists["theta_bar"]])
    assert penalty.value() == pytest.approx(want, rel=1e-12)
    getattr(penalty, name)[3].data = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"{name}\[3\]: expected \(1,\)"):
        penalty.value()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_frozen_parameters_are_left_out(impl):
    """But for one that has a gradient: optimizers go by it."""
    params, anchor, fisher, (repel,) = problem()
    frozen, moved = (0, 1, 5), 2  # an empty one, a small one, one of several chunks
    for i in (*frozen, moved):
        params[i].requires_grad_(False)
    params[moved].grad = torch.tensor(1.0)
    before = [p.detach().clone() for p in params]
    penalty = ParamPenalty(params, anchor, fisher, repel, impl=impl)
    penalty.add_grad_(2.0, 0.5)
    torch.optim.SGD(params, lr=0.1).step()
    for i, (p, q, a, f, r) in enumerate(zip(params, before, anchor, fisher, repel, strict=True)):
        gradient = (i == moved) + 2 * f * (q - a) + (q - r)
        torch.testing.assert_close(p.detach(), q if i in frozen else q - 0.1 * gradient, rtol=1e-5, atol=1e-5)
        assert (p.grad is None) == (i in frozen)


def test_adam_step_leaves_frozen_parameters_alone():
    params, lists, optimizer = adam_problem(lr=0.01)
    twins = [p.detach().double().requires_grad_() for p in params]
    exact = torch.optim.Adam(twins, lr=0.01)
    penalty = ParamPenalty(params, *lists)
    for step in range(4):
        for ts in (params, twins):
            for i, t in enumerate(ts):
                t.grad = tensors(20 + step)[i].to(t.dtype)
            if step > 1:  # frozen when its moments are there already
                ts[5].requires_grad_(False).grad = None
        assert penalty.adam_step_(optimizer, 2.0, 0.5) == (step == 1)
        with torch.no_grad():
            for t, a, f, r in zip(twins, *lists, strict=True):
                if t.grad is not None:
                    t.grad += 2 * f * (t - a) + (t - r)
        exact.step()
    torch.testing.assert_close(flat(params), flat(twins), rtol=1e-5, atol=1e-5)


def test_anchors_are_copies_outside_modules():
    module = torch.nn.Linear(3, 2)
    start = [p.detach().clone() for p in module.parameters()]
    penalty = ParamPenalty(list(module.parameters()), fisher=[torch.ones_like(p) for p in start])
    assert penalty.value() == (0.0, 0.0)
    with torch.no_grad():
        for p in module.parameters():
            p += 1
    assert penalty.value()[0] == pytest.approx(0.5 * 8, rel=1e-6)
    assert set(module.state_dict()) == {"weight", "bias"}


def test_weights_may_be_tensors_and_zero_does_nothing():
    params, anchor, fisher, repel = problem()
    penalty = ParamPenalty(params, anchor, fisher, repel)
    penalty.add_grad_(0.0, 0.0)
    assert all(p.grad is None for p in params)
    penalty.add_grad_(torch.tensor(2.0), torch.tensor([0.5]))
    by_tensors = flat([p.grad for p in params])
    for p in params:
        p.grad = None
    penalty.add_grad_(2.0, 0.5)
    assert torch.equal(by_tensors, flat([p.grad for p in params]))


def adam_problem(**options):
    params, anchor, fisher, (repel,) = problem()
    for i, p in enumerate(params):
        p.grad = tensors(20)[i]
    return params, (anchor, fisher, repel), torch.optim.Adam(params, **options)


def test_adam_step_equals_gradient_then_step_bit_for_bit_where_it_falls_back():
    results = []
    for together in (True, False):
        params, lists, optimizer = adam_problem()
        penalty = ParamPenalty(params, *lists, impl="reference")
        for _ in range(2):
            if together:
                assert penalty.adam_step_(optimizer, 2.0, 0.5) is False
            else:
                penalty.add_grad_(2.0, 0.5)
                optimizer.step()
        results.append(flat(params))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weight_decay=0.1), "expected weight_decay off, got weight_decay=0.1"),
        (dict(amsgrad=True), "expected amsgrad off"),
        (dict(maximize=True), "expected maximize off"),
    ],
)
def test_adam_step_refuses_other_updates(options, message):
    params, lists, optimizer = adam_problem(**options)
    with pytest.raises(ValueError, match=message):
        ParamPenalty(params, *lists).adam_step_(optimizer, 1.0)


def test_adam_step_refuses_other_optimizers():
    params, lists, optimizer = adam_problem()
    penalty = ParamPenalty(params, *lists)
    with pytest.raises(ValueError, match="got AdamW"):
        penalty.adam_step_(torch.optim.AdamW(params), 1.0)
    with pytest.raises(ValueError, match="expected the parameters of this penalty"):
        penalty.adam_step_(torch.optim.Adam(params[::-1]), 1.0)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(ValueError, match="expected one parameter group, got 2"):
        penalty.adam_step_(optimizer, 1.0)


def test_no_parameters_and_only_empty_ones():
    assert ParamPenalty([], repel_from=[]).value() == (0.0, 0.0)
    empty = [torch.zeros(0, 3, requires_grad=True)]
    penalty = ParamPenalty(empty, fisher=[torch.zeros(0, 3)], repel_from=[torch.zeros(0, 3)], reduction="tensor_mean")
    penalty.add_grad_(1.0, 1.0)
    assert penalty.value() == (0.0, 0.0)


def test_functional_gradcheck_and_opcheck():
    shapes = [(2, 3), (0,), (1,), (4, 2, 3, 3)]
    params = [p.requires_grad_() for p in tensors(0, torch.float64, shapes)]
    anchor, fisher, repel = (tensors(k, torch.float64, shapes) for k in (1, 2, 3))
    scale = [0.5, 2.0, 1.0, 0.25]

    def loss(*params):
        ewc, distance = param_penalty(params, anchor, fisher, repel, scale, impl="native")
        return ewc.exp().log() + (-0.1 * distance).exp()

    assert gradcheck(loss, params, fast_mode=True)
    args = (params, anchor, fisher, repel, scale)
    torch.library.opcheck(torch.ops.atu_ext.param_penalty, args)
    torch.library.opcheck(torch.ops.atu_ext.param_penalty, (params, [], [], repel, scale), test_utils=QUICK)
    weights = torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    detached = [p.detach() for p in params]
    torch.library.opcheck(torch.ops.atu_ext.param_penalty_grad, (*weights, detached, *args[1:]), test_utils=QUICK)


def test_functional_matches_reference_and_class():
    params, anchor, fisher, (repel,) = problem()
    strided = torch.randn(10, 6)[::2, ::2].requires_grad_()
    params.append(strided)
    for ts in (anchor, fisher, repel):
        ts.append(torch.rand(5, 3))
    results = []
    for impl in ("native", "reference"):
        values = param_penalty(params, anchor, fisher, repel, impl=impl)
        grads = torch.autograd.grad(2 * values[0] + 0.5 * values[1], params)
        results.append((values, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    contiguous = [p.detach().contiguous() for p in params]
    assert ParamPenalty(contiguous, anchor, fisher, repel).value() == pytest.approx([v.item() for v in results[0][0]])


def test_functional_traced_by_torch_compile():
    params, anchor, fisher, (repel,) = problem()

    def loss(params):
        ewc, distance = param_penalty(params, anchor, fisher, repel)
        return ewc + (-1e-5 * distance).exp()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    grads, want = (torch.autograd.grad(f(params), params) for f in (compiled, loss))
    torch.testing.assert_close(grads, want)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("dtype", r"params: expected one dtype and device"),
        ("integer", r"params\[1\]: expected a floating-point tensor"),
        ("sliced", r"params\[1\]: expected a dense tensor"),
        ("count", r"anchor: expected 2 tensors"),
        ("shape", r"fisher\[1\]: expected shape \(3,\)"),
        ("repel dtype", r"repel_from\[1\]\[0\]: expected torch.float32"),
        ("reduction", r"reduction: expected one of sum, tensor_mean, relative"),
        ("same", r"repel_from: expected to differ from the anchor"),
        ("impl", r"impl: expected"),
    ],
)
def test_errors_name_the_argument(kind, message):
    a, b = torch.zeros(2, 2), torch.zeros(3)
    calls = {
        "dtype": lambda: ParamPenalty([a, b.double()]),
        "integer": lambda: ParamPenalty([a, b.int()]),
        "sliced": lambda: ParamPenalty([a, torch.zeros(6)[::2]]),
        "count": lambda: ParamPenalty([a, b], anchor=[a]),
        "shape": lambda: ParamPenalty([a, b], fisher=[a, a]),
        "repel dtype": lambda: ParamPenalty([a, b], repel_from=[[a, b], [a.double(), b]]),
        "reduction": lambda: ParamPenalty([a, b], reduction="mean"),
        "same": lambda: ParamPenalty([a, b], repel_from=[a, b], reduction="relative"),
        "impl": lambda: ParamPenalty([a, b], impl="fast"),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        calls[kind]()
