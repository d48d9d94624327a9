"""What cdc and rssa compare: inner maps of the generator and of its untrained copy."""

import pytest
import torch

from atu import unlearn
from atu.methods.cdc import correspondence_loss
from atu.methods.taps import Taps, tapped_layers

from .kinds import KINDS, dcgan, marked, mlp, quick, stylegan, upper_half


def test_tapped_layers():
    assert tapped_layers(mlp(), [], "s") == ["net.2", "net.4"]  # hidden activations, not the latents
    assert tapped_layers(dcgan(), [], "s") == ["body.1", "last"]
    # Not b4.conv1, which takes in the constant; b8.conv0 takes in what b4.torgb does.
    assert tapped_layers(stylegan(), [], "s") == ["synthesis.b4.torgb", "synthesis.b8.conv1", "synthesis.b8.torgb"]
    assert tapped_layers(stylegan(), ["b8"], "s") == ["synthesis.b8.conv1", "synthesis.b8.torgb"]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_copies_see_the_same(kind):
    """The same latents, noise and batch statistics: no loss at the start, whatever the kind."""
    gan = KINDS[kind]()
    with torch.no_grad():
        for name, p in gan.generator.named_parameters():
            if name.endswith("noise_strength"):
                p.fill_(0.5)
    gan.generator.train()
    taps = Taps(gan, tapped_layers(gan, [], "s"))
    z, _ = gan.inputs(4)
    before, after = taps(z, None)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(b.requires_grad for b in before) and all(a.requires_grad for a in after)
    with torch.no_grad():
        next(p for n, p in gan.generator.named_parameters() if n.endswith(("conv1.weight", "0.weight"))).mul_(2).add_(1)
    assert correspondence_loss(*taps(z, None)).item() > 1e-9


@pytest.mark.parametrize("method, key", [("cdc", "correspondence"), ("rssa", "self_correlation")])
def test_a_heavier_loss_keeps_the_structure_nearer(method, key):
    gan = dcgan()
    ends = []
    for weight in (1e-6, 1e2):
        settings = {"weight": weight} if method == "cdc" else {"self_weight": weight}
        adversarial = {"batch_size": 8, "lr": 0.003}
        config = quick(method, steps=60, adversarial=adversarial, **settings)
        result = unlearn(gan, marked(gan), -torch.ones(20, 1, 8, 8), upper_half(gan), config, method=method)
        rows = [row[key] / weight for row in result.history if row["stage"] == method]
        ends.append(sum(rows[-10:]))
    assert ends[1] < 0.5 * ends[0], ends
