"""Evaluation of GANs whose samples, negatives and moments are known by construction."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from atu.data.images import map_range, save_folder
from atu.evaluation.evaluate import evaluate
from atu.evaluation.judged import Verdicts, judge_samples
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.probe import probe_of
from atu.judging.rule import Rule
from atu.measures.features import DiscriminatorFeatures
from atu.measures.frechet import frechet
from atu.measures.kid import kid
from atu.measures.shares import histogram, total_variation
from atu.networks.classifier import ConvClassifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.digest import sha256
from atu.support.seeding import mix_seed


class Shift(nn.Module):
    """Passes the latent on, moved by `offset`; records how it was called."""

    latent_dim = 2

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([offset, 0.0]))
        self.modes: list[bool] = []

    def forward(self, z):
        self.modes.append(self.training)
        return z + self.offset


class Quadrants(nn.Module):
    """Classes by the signs of x and y; the features are the points."""

    def features(self, x):
        return x

    def head(self, x):
        label = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        return 20.0 * nn.functional.one_hot(label, 4).float()


def quadrants():
    return Classifier(Quadrants(), ["0", "1", "2", "3"])


def gan(offset=0.0, **kwargs):
    return GAN(Shift(offset), MLPDiscriminator([2], hidden=(8,)), **kwargs)


def with_moments(n, mean, cov, seed=0):
    """n points whose sample mean and covariance (ddof 1) are exactly as given."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.t())), x.t(), upper=False)
    return (torch.linalg.cholesky(cov) @ white).t() + mean


def test_frechet_of_axis_aligned_gaussians_is_the_closed_form():
    # For diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2.
    s1, s2 = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    m1, m2 = torch.zeros(3).double(), torch.tensor([1.0, 0.0, -2.0]).double()
    a, b = with_moments(300, m1, s1.square().diag()), with_moments(500, m2, s2.square().diag(), seed=1)
    assert frechet(a, b) == pytest.approx(5 + 2, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_full_covariances_equals_scipys_matrix_root():
    rng = torch.Generator().manual_seed(2)
    a, b = (torch.randn(400, 6, generator=rng) @ torch.randn(6, 6, generator=rng) for _ in range(2))
    ca, cb = torch.cov(a.double().t()).numpy(), torch.cov(b.double().t()).numpy()
    mean = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    expected = mean + ca.trace() + cb.trace() - 2 * sqrtm(ca @ cb).real.trace()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_too_few_samples_is_none():
    assert frechet(torch.randn(1, 3), torch.randn(10, 3)) is None


def test_numbers_agree_with_counting_by_hand():
    n, seed = 4000, 3
    result = evaluate(gan(), gan(1.0), quadrants(), ["0", "2"], n=n, seed=seed)
    z = gan().sample(n, seed, batch_size=250)  # left half plane is negative; the shift moves points out of it
    before, after = z[:, 0] <= 0, z[:, 0] <= -1
    figures = result.figures
    assert figures.negatives_before == int(before.sum())
    assert figures.negatives_after == int(after.sum())
    assert figures.pul == pytest.approx(100 * (1 - int(after.sum()) / int(before.sum())))
    assert figures.pul_ci95[0] < figures.pul < figures.pul_ci95[1]
    # Phi(-1) / Phi(0) of the negatives are left in truth.
    assert figures.pul_ci95[0] < 100 * (1 - 0.158655 / 0.5) < figures.pul_ci95[1]
    upper = z[:, 1] > 0
    assert figures.models["before"].classes["3"].count == int((~before & upper).sum())
    assert sum(row.count for row in figures.models["after"].classes.values()) == n
    other = gan().sample(n, mix_seed(seed, 996), batch_size=250)  # the reference: good samples of other latents
    reference, kept, now = other[other[:, 0] > 0], z[~before], (z + torch.tensor([1.0, 0.0]))[~after]
    assert figures.kept.frechet == pytest.approx(frechet(reference, now[: len(kept)]), rel=1e-6)
    assert figures.kept.frechet_chance == pytest.approx(frechet(reference, kept), rel=1e-6)
    assert (figures.kept.compared, figures.kept.reference) == (len(kept), len(reference))
    assert figures.good_changed.count == 0  # a shift to the right leaves the right half plane's quadrants alone
    assert figures.good_changed.by_a_pixel is None  # these are no images
    assert figures.landing.transitions["0"]["1"] == int((before & ~after & ~upper).sum())
    assert figures.landing.still_negative == int(after.sum())
    assert figures.models["before"].fid_cls is None
    assert torch.equal(result.models["before"].negative, before)


def test_fid_is_against_real_samples_without_the_class():
    real = torch.randn(3000, 2, generator=torch.Generator().manual_seed(9))
    by_judge = evaluate(gan(), gan(0.5), quadrants(), ["0", "2"], real, n=1000)
    kept = real[real[:, 0] > 0]
    z = gan().sample(1000, 0, batch_size=250)
    assert by_judge.figures.real_images == len(kept)
    assert by_judge.figures.models["before"].fid_cls == pytest.approx(frechet(kept, z), rel=1e-6)
    assert by_judge.figures.models["after"].fid_cls < by_judge.figures.models["before"].fid_cls
    labels = (torch.arange(3000) % 4 == 0).long() * 2 + 1  # labels that are given win over the judge's
    by_label = evaluate(gan(), gan(0.5), quadrants(), ["1"], (real, labels), n=1000)
    assert by_label.figures.real_images == int((labels != 1).sum())


def test_the_kernel_distance_does_not_depend_on_the_order_of_the_real_samples():
    """Files come sorted by class, and it takes the first 2,000 of each side."""
    real = torch.randn(6000, 2, generator=torch.Generator().manual_seed(9))
    by_class = real[real[:, 0].argsort()]
    found = [
        evaluate(gan(), gan(), quadrants(), ["3"], one, n=1000).figures.models["before"].kid_cls
        for one in (real, by_class)
    ]
    assert found[1] == pytest.approx(found[0], abs=0.02)
    kept = by_class[(by_class <= 0).any(1)]
    assert kid(kept, gan().sample(1000, 0, batch_size=250)) > found[1] + 0.2  # what the first of them alone would give


def test_same_model_twice_changes_nothing_and_reads_as_chance():
    figures = evaluate(gan(), gan(), quadrants(), ["1"], n=500).figures
    assert figures.pul == 0.0
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage"):
        assert getattr(figures.kept, name) == getattr(figures.kept, f"{name}_chance")
    assert figures.good_changed.count == 0
    assert figures.landing.still_negative == figures.landing.latents == figures.negatives_before
    assert figures.kept.tv_redistribution == 0.0
    assert figures.kept.frechet_redistribution == figures.kept.frechet_chance
    assert figures.kept.tv == 0.0
    assert figures.models["before"].classes == figures.models["after"].classes


def test_ema_generator_in_eval_mode_is_judged_and_modes_are_restored():
    pair = gan(0.0, generator_ema=Shift(5.0))
    pair.generator_ema.train()
    figures = evaluate(gan(), pair, quadrants(), ["0", "2"], n=200).figures
    assert figures.negatives_after == 0
    assert pair.generator_ema.modes
    assert not any(pair.generator_ema.modes)
    assert pair.generator_ema.training


def test_others_and_grids_share_the_latents():
    result = evaluate(gan(), gan(1.0), quadrants(), ["0"], others={"adapted": Shift(-3.0)}, n=300, keep=16)
    assert list(result.models) == ["before", "adapted", "after"]
    shift = result.models["after"].first - result.models["before"].first
    assert torch.allclose(shift, torch.tensor([1.0, 0.0]).expand(16, 2), atol=1e-6)
    assert result.figures.models["adapted"].negatives == int(result.models["adapted"].negative.sum())


def test_oracle_alone_uses_the_discriminators_features():
    pair = gan()
    result = evaluate(pair, gan(10.0), lambda x: x[:, 0] < 0, n=400)
    assert result.figures.negatives_after == 0
    assert result.figures.pul == 100.0
    assert result.figures.features == "discriminator"
    assert result.models["before"].features.shape == (400, 8)  # width of the discriminator's last hidden layer
    assert result.figures.kept.frechet > 0
    assert result.figures.kept.tv is None


def test_oracle_beside_a_classifier_says_what_is_negative():
    def high(x):
        return x[:, 1] > 1

    result = evaluate(
        gan(), gan(1.0), replace(Rule(high), classifier=quadrants()), real=torch.randn(500, 2), n=2000, seed=4
    )
    z = gan().sample(2000, 4, batch_size=250)
    figures = result.figures
    assert figures.negatives_before == int(high(z).sum())
    assert result.negative_classes == []
    assert figures.features == "classifier"
    other = gan().sample(2000, mix_seed(4, 996), batch_size=250)
    now = (z + torch.tensor([1.0, 0.0]))[~high(z)]
    assert figures.kept.frechet == pytest.approx(frechet(other[~high(other)], now), rel=1e-6)
    # Total variation of the quadrants' shares among what is not negative, by hand.
    shares = []
    for x in (z, z + torch.tensor([1.0, 0.0])):
        label = quadrants().logits_and_features(x[~high(x)])[0].argmax(1)
        shares.append(torch.bincount(label, minlength=4).double() / len(label))
    assert figures.kept.tv == pytest.approx(float((shares[0] - shares[1]).abs().sum() / 2), abs=1e-12)
    assert figures.real_images < 500
    with pytest.raises(ValueError, match="classes: 0 need a classifier"):
        evaluate(gan(), gan(), Rule(high), ["0"], n=10)


def test_shares_of_attributes():
    questions = {"right": lambda x: x[:, 0] > 0, "far": lambda x: x.norm(dim=1) > 2}
    figures = evaluate(gan(), gan(1.0), quadrants(), ["0"], attributes=questions, n=1000).figures
    z = gan().sample(1000, 0, batch_size=250)
    assert figures.models["before"].attributes["right"].count == int((z[:, 0] > 0).sum())
    assert figures.models["after"].attributes["right"].count == int((z[:, 0] > -1).sum())
    low, high = figures.models["after"].attributes["far"].ci95
    assert low < figures.models["after"].attributes["far"].share < high
    assert evaluate(gan(), gan(), quadrants(), ["0"], n=100).figures.models["before"].attributes == {}


def test_manifold_of_what_is_kept():
    figures = evaluate(gan(), gan(50.0), quadrants(), ["0"], n=1000).figures
    assert (figures.kept.precision, figures.kept.recall) == (0.0, 0.0)
    assert figures.kept.precision_chance > 0.8


def test_no_negatives_to_begin_with():
    figures = evaluate(gan(), gan(), lambda x: x[:, 0] > 100, n=100).figures
    assert (figures.pul, figures.pul_ci95, figures.negatives_before) == (None, None, 0)


def test_total_variation_by_hand():
    before = torch.tensor([0] * 10 + [1] * 60 + [2] * 30)
    after = torch.tensor([1] * 50 + [2] * 50)
    # Kept classes 1 and 2: (2/3, 1/3) before, (1/2, 1/2) after.
    assert total_variation(before, after, [0], 3) == pytest.approx(1 / 6)
    assert total_variation(before, torch.zeros(5, dtype=torch.long), [0], 3) is None


def test_histogram_counts_absent_classes():
    rows = histogram(torch.tensor([0, 0, 2]), ["a", "b", "c"])
    assert [rows[name].count for name in "abc"] == [2, 0, 1]
    assert rows["b"].ci95[0] == 0.0


def test_images_are_clamped_and_mapped_to_the_judges_range():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert map_range(x, (-1, 1), (0, 1)).flatten().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    points = torch.tensor([[5.0, -5.0]])
    assert torch.equal(map_range(points, (-1, 1), (0, 1)), points)


def test_images_are_moved_by_a_pixel_to_tell_the_judges_own_doubt():
    class Brightest(nn.Module):
        """Four logits, of the sums of four pairs of columns."""

        def forward(self, x):
            return 50 * x.sum((1, 2)).unflatten(1, (4, 2)).sum(2)

    torch.manual_seed(3)
    pair = GAN(MLPGenerator(4, [1, 3, 8], (16,), "tanh"), None)
    found = evaluate(pair, pair, Brightest(), ["2"], n=301).figures.good_changed
    x = pair.sample(301, seed=0, batch_size=250).clamp(-1, 1).double()
    moved = torch.nn.functional.pad(x, (1, 0, 0, 0), mode="replicate")[..., :8]
    was, now = (Brightest()(one).argmax(1) for one in (x, moved))
    expected = ((was != now) & (was != 2)).sum(), (was != 2).sum()
    assert 0 < expected[0] < expected[1]
    assert found.by_a_pixel.count == expected[0]
    assert found.by_a_pixel.share == pytest.approx(float(expected[0] / expected[1]))
    assert found.count == 0


def test_the_original_is_judged_once_beside_several():
    """What an earlier comparison found of it gives the same figures, and it makes no sample again."""
    first, other = gan(), gan(0.3)
    options = dict(classes=["3"], judges={"right": lambda x: x[:, 0] > 0}, n=301, keep=7)
    options["real"] = torch.rand(101, 2) * 2 - 1
    known = evaluate(first, gan(-0.4), quadrants(), **options).original
    first.generator.modes.clear()
    found = evaluate(first, other, quadrants(), **options, original=known)
    assert not first.generator.modes and other.generator.modes
    anew = evaluate(first, other, quadrants(), **options)
    assert first.generator.modes
    assert (
        found.figures == anew.figures
        and found.figures.models["before"].fid_cls != found.figures.models["after"].fid_cls
    )
    assert torch.equal(found.models["before"].first, anew.models["before"].first)


def test_judging_keeps_no_more_than_asked():
    judged = judge_samples(
        torch.arange(20.0).reshape(20, 1).split(8), lambda x: Verdicts(x[:, 0] > 3, x, None, None), keep=10
    )
    assert judged.first.flatten().tolist() == list(range(10))
    assert judged.labels is None


def test_a_rule_must_say_yes_or_no_in_bools():
    def counts(x):
        return (x[:, 0] < 0).long()

    message = r"expected a bool tensor \[250\] for 250 samples, got \[250\] torch.int64"
    with pytest.raises(ValueError, match=message):
        evaluate(gan(), gan(), counts, n=500)
    with pytest.raises(ValueError, match=message):
        evaluate(gan(), gan(), replace(Rule(counts), classifier=quadrants()), n=500)
    with pytest.raises(ValueError, match=message):
        evaluate(gan(), gan(), quadrants(), ["0"], attributes={"left": counts}, n=500)


def test_real_samples_without_a_classifier_are_compared_in_the_discriminators_features():
    pair, real = gan(), torch.randn(700, 2, generator=torch.Generator().manual_seed(5))
    figures = evaluate(pair, gan(1.0), lambda x: x[:, 0] < 0, real=real, n=400).figures
    kept = DiscriminatorFeatures(pair).penultimate([real[real[:, 0] >= 0]])
    own = DiscriminatorFeatures(pair).penultimate([pair.sample(400, 0, batch_size=250)])
    assert figures.real_images == len(kept)
    assert figures.models["before"].fid_cls == pytest.approx(frechet(kept, own), rel=1e-4)
    with pytest.raises(ValueError, match=r"real: expected samples of shape \[2\], got \[3\]"):
        evaluate(pair, gan(1.0), lambda x: x[:, 0] < 0, real=torch.zeros(9, 3), n=10)


class Logits(nn.Sequential):
    """The quadrants' classes as a plain network: logits from two layers with weights."""

    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.Dropout(0.9), nn.Linear(2, 4))
        with torch.no_grad():
            self[0].weight.copy_(torch.eye(2))
            self[0].bias.zero_()
            self[2].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]))
            self[2].bias.zero_()


def test_any_module_that_gives_logits_judges():
    module = Logits().train()
    found = evaluate(gan(), gan(1.0), module, [0, "2"], n=600)
    expected = evaluate(gan(), gan(1.0), quadrants(), ["0", "2"], n=600)
    assert found.classes == ["0", "1", "2", "3"]
    own, other = asdict(found.figures), asdict(expected.figures)
    for name in ("pul", "negatives_after", "kept"):
        assert own[name] == other[name], name
    assert own["models"]["after"]["classes"] == other["models"]["after"]["classes"]
    sure, surer = own["landing"].pop("sure"), other["landing"].pop("sure")
    assert sure < surer == 1.0  # smaller logits
    assert own["landing"].pop("sure_chance") < other["landing"].pop("sure_chance")
    assert own["landing"] == other["landing"]
    assert own["good_changed"].pop("sure") != other["good_changed"].pop("sure")
    assert own["good_changed"] == other["good_changed"]
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(ValueError, match=r"classifier: expected logits \[2, two classes or more\] .* got \[2, 1\]"):
        evaluate(gan(), gan(), nn.Linear(2, 1), ["0"], n=10)


def test_a_callable_and_negatives_judge():
    def left(x):
        return x[:, 0] < -0.5

    pair = gan()
    assert evaluate(pair, gan(1.0), left, n=300).figures.negatives_before == int(left(pair.sample(300)).sum())
    z = pair.sample(1000, seed=9)
    figures = evaluate(pair, gan(3.0), z[left(z)][:100], n=500).figures  # a probe is fitted on them
    truth = int(left(pair.sample(500, 0, batch_size=250)).sum())
    assert 0.7 * truth < figures.negatives_before < 1.5 * truth
    assert figures.pul > 90
    assert figures.features == "discriminator"
    probe = probe_of(pair, z[left(z)][:100])
    assert evaluate(pair, gan(3.0), probe, n=500).figures == figures


def test_a_folder_of_images_judges(tmp_path):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    pair = GAN(generator, nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)), latent_dim=4)
    x = pair.sample(400, seed=3)
    save_folder(x[x[:, 0, 0, 0] > 0.3], pair.image_range, tmp_path)
    found = evaluate(pair, pair, str(tmp_path), n=200)
    assert 0 < found.figures.negatives_before < 200
    assert found.models["after"].shown.shape == (min(24, found.figures.negatives_after), 1, 4, 4)


def test_the_file_of_a_classifier_judges(tmp_path):
    torch.manual_seed(1)
    classifier = Classifier(ConvClassifier(3, 8, 1, (4, 4, 4, 4, 4), 5), ["a", "b", "c"], name="c")
    generator = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    pair = GAN(generator, nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), latent_dim=4)
    path = classifier.save(tmp_path / "c.safetensors")
    assert evaluate(pair, pair, path, ["b"], n=40).figures == evaluate(pair, pair, classifier, ["b"], n=40).figures


def test_large_images_are_kept_as_thumbnails():
    x = torch.rand(3, 1, 256, 128)
    judged = judge_samples(
        [x], lambda x: Verdicts(torch.ones(len(x), dtype=torch.bool), x.flatten(1)[:, :2], None, None), 2
    )
    assert (judged.first.shape, judged.shown.shape) == ((2, 1, 128, 64), (3, 1, 128, 64))
    assert torch.allclose(judged.first.mean((1, 2, 3)), x[:2].mean((1, 2, 3)), atol=5e-3)


def test_hashes_are_of_the_weights():
    found = evaluate(gan(), gan(1.0), quadrants(), ["0"], n=50).sha256
    assert len(found["before"]) == len(found["after"]) == 64
    assert found["before"] != found["after"]
    one = gan()
    assert evaluate(one, one, quadrants(), ["0"], n=50).sha256["after"] == sha256(
        {f"{name}.{key}": v for name, module in one.modules().items() for key, v in module.state_dict().items()}
    )


def test_the_first_negatives_are_kept_to_be_looked_at():
    x = torch.arange(60.0).reshape(60, 1)
    judged = judge_samples(x.split(7), lambda x: Verdicts(x[:, 0] % 5 == 0, x, None, None), shown=4)
    assert judged.shown.flatten().tolist() == [0, 5, 10, 15]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="judge: expected a rule, a classifier"):
        evaluate(gan(), gan(), None, n=10)
    with pytest.raises(ValueError, match="classes: 1 need a classifier"):
        evaluate(gan(), gan(), lambda x: x[:, 0] > 0, ["1"], n=10)
    with pytest.raises(ValueError, match="n: expected at least 2"):
        evaluate(gan(), gan(), quadrants(), ["0"], n=1)
