"""The losses of CDC and RSSA against their definitions written as loops, in float64."""

import itertools
import math

import pytest
import torch

from atu.methods.cdc import correspondence_loss
from atu.methods.rssa import disturbance_loss, self_correlation_loss


def cosine(a, b):
    return float((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()))


def softmax(values):
    e = [math.exp(v) for v in values]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def features(*shapes, seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


def test_correspondence_is_the_naive_one():
    shapes = (5, 7), (5, 3, 2, 4)
    before, after = features(*shapes, seed=1), features(*shapes, seed=2)
    total = 0.0
    for s, t in zip(before, after, strict=True):
        for i in range(5):
            others = [j for j in range(5) if j != i]
            p = softmax([cosine(t[i], t[j]) for j in others])
            q = softmax([cosine(s[i], s[j]) for j in others])
            total += kl(p, q) / 5 / 2
    assert correspondence_loss(before, after).item() == pytest.approx(total, rel=1e-10)
    assert correspondence_loss(before, [3 * x for x in before]).item() == pytest.approx(0, abs=1e-12)
    after = [x.requires_grad_() for x in after]
    assert torch.autograd.gradcheck(lambda *x: correspondence_loss(before, x), after)


def pooled(x, size):
    """Means over equal windows, for sizes that divide."""
    n, c, h, w = x.shape
    a, b = min(h, size), min(w, size)
    return x.reshape(n, c, a, h // a, b, w // b).mean(dim=(3, 5))


def smooth_l1(d):
    return 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5


def test_structure_losses_are_the_naive_ones():
    shapes, size = ((3, 4, 2, 3), (3, 2, 4, 4)), 2
    before, after = features(*shapes, seed=3), features(*shapes, seed=4)
    structure = relation = 0.0
    before_small = [pooled(x, size) if x.shape[-1] == 4 else x for x in before]
    after_small = [pooled(x, size) if x.shape[-1] == 4 else x for x in after]
    for s, t in zip(before_small, after_small, strict=True):
        n, _, h, w = s.shape
        spots = list(itertools.product(range(h), range(w)))

        def at(x, i, spot):
            return x[i, :, spot[0], spot[1]]

        for i in range(n):
            for a, b in itertools.product(spots, spots):
                d = cosine(at(t, i, a), at(t, i, b)) - cosine(at(s, i, a), at(s, i, b))
                structure += smooth_l1(d) / (n * len(spots) ** 2)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        for (i, j), a in itertools.product(pairs, spots):
            p = softmax([cosine(at(s, i, a), at(s, j, b)) for b in spots])
            q = softmax([cosine(at(t, i, a), at(t, j, b)) for b in spots])
            relation += kl(p, q) / (len(pairs) * len(spots))
    # 2 x 3 maps are pooled to 2 x 2 by overlapping windows, which the loop above does not do: not smaller than 3 here.
    first = [before[:1], after[:1]]
    got = self_correlation_loss(*first, 3) + self_correlation_loss(before[1:], after[1:], size)
    assert got.item() == pytest.approx(structure, rel=1e-10)
    got = disturbance_loss(*first, 3) + disturbance_loss(before[1:], after[1:], size)
    assert got.item() == pytest.approx(relation, rel=1e-10)
    assert self_correlation_loss(before, before, 2).item() == disturbance_loss(before, before, 2).item() == 0
    after = [x.requires_grad_() for x in after]
    assert torch.autograd.gradcheck(lambda *x: disturbance_loss(before, x, 3), after)
    assert torch.autograd.gradcheck(lambda *x: self_correlation_loss(before, x, 3), after)
