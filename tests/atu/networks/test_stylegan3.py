"""The lengths of StyleGAN3's filters: what the published networks have, and where they end."""

from __future__ import annotations

import pytest
import torch

from atu.networks.stylegan3 import MAX_TAPS, Generator

R = dict(conv_kernel=1, channel_base=65536, channel_max=1024, use_radial_filters=True)


def taps(network):
    return {size for name, value in network.named_buffers() if name.endswith("_filter") for size in value.shape}


@pytest.mark.parametrize("resolution", [256, 1024])
@pytest.mark.parametrize("options", [{}, R])
def test_published_networks_have_short_filters(resolution, options):
    """6 taps at twice the rate, and at four times where a layer doubles the sampling rate too."""
    with torch.device("meta"):
        network = Generator(512, 0, 512, resolution, 3, **options)
    assert taps(network) == {12, 24} and MAX_TAPS > 10 * 24


def test_longer_filters_are_refused():
    options = dict(num_layers=4, channel_base=64, channel_max=4, use_radial_filters=True)
    assert max(taps(Generator(4, 0, 4, 16, 3, filter_size=128, **options))) == MAX_TAPS
    with pytest.raises(ValueError, match=r"filter_size 129 at 2 times the rate: expected at most 256 taps, got 258"):
        Generator(4, 0, 4, 16, 3, filter_size=129, **options)
