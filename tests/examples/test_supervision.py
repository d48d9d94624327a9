"""Latents that stand for labels, and a generator that learns to draw them before its adversarial training."""

import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.gan import GAN
from atu.networks.stylegan2 import Discriminator, Generator
from examples import supervision
from examples.scratch import train
from examples.supervision import Draw, LatentCode, Supervision, TellLabels


def flags(n=60):
    """Images [n, 1, 8, 8] of one grey, and a bright half or none, with both labels."""
    labels = torch.stack([torch.arange(n) % 3, torch.arange(n) // 3 % 2], 1)
    images = (labels[:, 0].float() - 1)[:, None, None, None].repeat(1, 1, 8, 8) * 0.5
    images[:, :, :, 4:] += 0.5 * labels[:, 1].float()[:, None, None, None]
    return images, labels


def small_gan():
    return GAN(
        Generator(12, 0, 12, 8, 1, dict(num_layers=2), dict(channel_base=64, channel_max=8)),
        Discriminator(0, 8, 1, channel_base=64, channel_max=8),
    )


@given(st.integers(1, 5), st.integers(1, 17), st.integers(0, 99))
def test_latents_of_labels_stand_for_them(kinds, most, seed):
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, most + 1, (kinds,), generator=rng)
    labels = torch.stack([torch.randint(int(size), (53,), generator=rng) for size in sizes], 1)
    code = LatentCode(labels)
    z = code.latents(labels, 2 * kinds + 3)
    assert z.shape == (53, 2 * kinds + 3)
    assert torch.equal(code.labels(z), labels)


def test_latents_of_the_datas_labels_are_normal_and_normal_latents_have_the_datas_shares():
    torch.manual_seed(0)
    labels = torch.stack([torch.arange(20_000) % 7 // 3, torch.arange(20_000) % 5], 1)
    code = LatentCode(labels)
    z = code.latents(labels, 6)
    for column in z.t():
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(z.t()) - torch.eye(6)).abs().max() < 0.03
    found = code.labels(torch.randn(20_000, 6))
    for column, wanted in zip(found.t(), labels.t(), strict=True):
        shares = column.bincount(minlength=5) / 20_000
        torch.testing.assert_close(shares, wanted.bincount(minlength=5) / 20_000, atol=0.015, rtol=0)


def test_the_mapping_network_learns_to_tell_labels():
    torch.manual_seed(0)
    gan, code = small_gan(), LatentCode(flags()[1])
    lesson = TellLabels(gan, code, 500)
    first = lesson.step()["loss"]
    while lesson.step_count < 500:
        last = lesson.step()["loss"]
    assert last < 0.3 * first
    w = gan.generator.mapping(torch.randn(2000, 12)).detach()
    assert w.std() == pytest.approx(1, abs=0.05)


def test_the_generator_learns_to_draw():
    torch.manual_seed(0)
    images, labels = flags()
    gan = small_gan()
    told = Supervision(TensorSamples(images), labels, 500, 600)
    for lesson in (TellLabels(gan, told.code, 500), Draw(gan, told, 600)):
        while lesson.step_count < lesson.steps:
            lesson.step()
    z = torch.randn(300, 12)
    wanted = told.code.labels(z)
    drawn = gan.generator(z).detach()
    left, right = drawn[:, 0, :, :3].mean((1, 2)), drawn[:, 0, :, 5:].mean((1, 2))
    grey = (wanted[:, 0] - 1) * 0.5
    assert (left - grey).abs().mean() < 0.15  # 0.33, if it knew nothing of the latent
    assert (right - grey - 0.5 * wanted[:, 1]).abs().mean() < 0.18
    assert gan.generator_ema is None


def test_a_training_with_lessons_goes_on_exactly_where_it_was_stopped(tmp_path, monkeypatch):
    images, labels = flags()
    samples, phases = TensorSamples(images), [(6, Adversarial(batch_size=4, loss="relativistic"))]

    def trained(out, stop_at=None):
        calls = iter(range(1000))
        distance = Supervision.distance

        def stopping(self, gan):
            if next(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return distance(self, gan)

        monkeypatch.setattr(Supervision, "distance", stopping)
        torch.manual_seed(0)
        gan = small_gan()
        try:
            history = train(
                gan, samples, phases, out, log_every=2, save_every=2, lessons=Supervision(samples, labels, 5, 7)
            )
        finally:
            monkeypatch.setattr(Supervision, "distance", distance)
        return gan, history

    whole, history = trained(tmp_path / "whole")
    assert [(row["stage"], row["step"]) for row in history][-3:] == [("pretrain", step) for step in (2, 4, 6)]
    assert {row["stage"] for row in history} == {"labels", "draw", "pretrain"}
    assert all(row["drawn"] > 0 for row in history if row["stage"] == "pretrain")
    for stop_at in (3, 5):  # while drawing, and after it
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", stop_at)
    again, later = trained(tmp_path / "stopped")
    for name, module in whole.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.modules()[name].state_dict()[key]), (name, key)
    numbers = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in later] == numbers


def test_lessons_weigh_the_distance(monkeypatch):
    images, labels = flags()
    told = Supervision(TensorSamples(images), labels, 1, 1, weight=3.0)
    monkeypatch.setattr(supervision.Supervision, "distance", lambda self, gan: torch.tensor(0.5))
    loss, parts = told.loss(small_gan())
    assert float(loss) == 1.5 and parts == {"drawn": 0.5}
