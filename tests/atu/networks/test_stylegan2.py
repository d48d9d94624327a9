"""The two ways through a block of the synthesis network give the same: with the first layer's output multiplied by the
second's styles in its own pass, as on CUDA, and without."""

from __future__ import annotations

import pytest
import torch

from atu.networks.stylegan2 import SynthesisBlock


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_layers_that_hand_on_a_modulated_image(architecture):
    torch.manual_seed(0)
    block = SynthesisBlock(6, 4, 8, 8, 3, False, architecture).double()
    for layer in (block.conv0, block.conv1):
        torch.nn.init.normal_(layer.noise_strength)
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    w0, w1 = torch.randn(2, 2, 8, dtype=torch.float64).unbind()
    inputs = [x, *block.conv0.parameters(), *block.conv1.parameters()]
    plain = block.conv1(block.conv0(x, w0, "const"), w1, "const", 0.7)
    styles = block.conv1.styles(w1, x.dtype)
    fused = block.conv1(block.conv0(x, w0, "const", next_styles=styles), w1, "const", 0.7, modulated_by=styles)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block._layers(x, w0, w1, "const", 0.7), plain, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(plain)
    grads, want = (torch.autograd.grad(y, inputs, dy, retain_graph=True) for y in (fused, plain))
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-10)
