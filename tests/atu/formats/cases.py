"""Configurations whose outputs reference_values.json holds."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = dict(z_dim=16, w_dim=12)
G2: dict[str, dict[str, Any]] = {
    "skip": dict(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=16),
    "resnet_labels": dict(
        c_dim=5, img_resolution=32, img_channels=1, channel_base=256, channel_max=12, architecture="resnet"
    ),
    "orig_clamped": dict(
        c_dim=0, img_resolution=16, img_channels=4, channel_base=128, channel_max=8, architecture="orig", conv_clamp=0.7
    ),
    "binomial_relu": dict(
        c_dim=2,
        img_resolution=8,
        img_channels=3,
        channel_base=128,
        channel_max=8,
        resample_filter=[1, 4, 6, 4, 1],
        activation="relu",
        use_noise=False,
    ),
}
MAPPING: dict[str, dict[str, Any]] = {
    "skip": {},
    "resnet_labels": dict(num_layers=3, embed_features=7, layer_features=10),
    "orig_clamped": dict(num_layers=2, lr_multiplier=0.1),
    "binomial_relu": dict(num_layers=1, activation="relu"),
}
D: dict[str, dict[str, Any]] = {
    "resnet": dict(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=16),
    "resnet_labels": dict(
        c_dim=5,
        img_resolution=32,
        img_channels=1,
        channel_base=256,
        channel_max=12,
        cmap_dim=6,
        mapping_kwargs=dict(num_layers=2),
    ),
    "skip_std": dict(
        c_dim=0,
        img_resolution=16,
        img_channels=3,
        channel_base=128,
        channel_max=8,
        architecture="skip",
        epilogue_kwargs=dict(mbstd_group_size=2, mbstd_num_channels=4),
    ),
    "orig_plain": dict(
        c_dim=0,
        img_resolution=8,
        img_channels=3,
        channel_base=128,
        channel_max=8,
        architecture="orig",
        conv_clamp=0.9,
        epilogue_kwargs=dict(mbstd_num_channels=0),
    ),
}
G3: dict[str, dict[str, Any]] = {
    "t": dict(c_dim=0, img_resolution=16, img_channels=3, channel_base=256, channel_max=8, num_layers=6),
    "t_labels": dict(c_dim=3, img_resolution=32, img_channels=1, channel_base=256, channel_max=8, num_layers=8),
    "r": dict(
        c_dim=0,
        img_resolution=16,
        img_channels=3,
        channel_base=512,
        channel_max=12,
        num_layers=6,
        conv_kernel=1,
        use_radial_filters=True,
    ),
}
FORWARDS: dict[str, dict[str, Any]] = {
    "const": dict(noise_mode="const"),
    "truncated": dict(noise_mode="none", truncation_psi=0.6, truncation_cutoff=3),
}
