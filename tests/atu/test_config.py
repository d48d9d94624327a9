"""Settings: TOML there and back, and every mistake named."""

import dataclasses

import pytest

from atu.config import Adversarial, Config, Repel


def leaves(data, path=()):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_defaults_round_trip(tmp_path):
    config = Config()
    assert Config.load(config.save(tmp_path / "c.toml")) == config
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({}) == config


def test_every_number_round_trips(tmp_path):
    """Each numeric setting is changed, written, read, and found again."""
    data = Config().to_dict()
    for path, value in list(leaves(data)):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            section = data
            for key in path[:-1]:
                section = section[key]
            section[path[-1]] = value + 1 if isinstance(value, int) else value / 3 + 0.01
    data["adapt"]["adversarial"].update(lr=1.5e-4, beta1=0.25, beta2=0.75)
    data["repel"].update(gamma=0.125, loss="il2", reduction="tensor_mean", schedule="linear")
    data["adapt"]["fisher"].update(of="log_likelihood", samples="negatives", parameters=["conv", r"\.weight$"])
    config = Config.from_dict(data)
    assert config.to_dict() == data
    again = Config.load(config.save(tmp_path / "c.toml"))
    assert again == config and again.to_dict() == data


def test_a_section_in_part_keeps_the_rest_of_its_defaults():
    default = Config()
    for stage in ("adapt", "repel"):
        config = Config.from_dict({stage: {"adversarial": {"lr": 0.5}}})
        changed = dataclasses.replace(getattr(default, stage).adversarial, lr=0.5)
        assert getattr(config, stage).adversarial == changed
    assert Config.from_dict({"adapt": {"fisher": {"n": 3}}}).repel == default.repel


@pytest.mark.parametrize(
    "data, words",
    [
        ({"unknown": 1}, ["unknown"]),
        ({"repel": {"step": 5}}, ["repel.step"]),
        ({"repel": {"steps": -1}}, ["repel.steps", "-1"]),
        ({"repel": {"steps": 1.5}}, ["repel.steps", "1.5"]),
        ({"repel": {"loss": "l2"}}, ["repel.loss", "el2", "l2"]),
        ({"repel": {"reduction": "mean"}}, ["repel.reduction", "relative"]),
        ({"repel": {"schedule": "step"}}, ["repel.schedule", "cosine"]),
        ({"repel": {"alpha": 0}}, ["repel.alpha"]),
        ({"repel": {"gamma": float("nan")}}, ["repel.gamma"]),
        ({"repel": {"gamma": float("inf")}}, ["repel.gamma"]),
        ({"adapt": {"models": 0}}, ["adapt.models", "0"]),
        ({"adapt": {"ewc_weight": "big"}}, ["adapt.ewc_weight", "big"]),
        ({"adapt": {"adversarial": {"augment": "colour"}}}, ["adapt.adversarial.augment", "colour", "color"]),
        ({"adapt": {"adversarial": {"beta1": 1.0}}}, ["adapt.adversarial.beta1"]),
        ({"adapt": {"fisher": {"of": "loss"}}}, ["adapt.fisher.of", "logit"]),
        ({"adapt": {"fisher": {"parameters": ["("]}}}, ["adapt.fisher.parameters", "regular expression"]),
        ({"adapt": 3}, ["adapt"]),
        ({"feedback": {"recall": 1.5}}, ["feedback.recall", "1.5"]),
        ({"log_every": 0}, ["log_every"]),
    ],
)
def test_mistakes_are_named(data, words):
    with pytest.raises(ValueError, match=r"^config: ") as error:
        Config.from_dict(data)
    for word in words:
        assert word in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ValueError) as error:
        Config.from_dict({"repel": {"steps": -1}, "adapt": {"models": 0}})
    assert "repel.steps" in str(error.value) and "adapt.models" in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"config: .*none\.toml cannot be read"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"config: .* cannot be read"):
        Config.load(tmp_path)
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"bad\.toml is not valid TOML"):
        Config.load(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff\xfe'")
    with pytest.raises(ValueError, match=r"bytes\.toml cannot be read"):
        Config.load(tmp_path / "bytes.toml")


def test_assignment_is_checked():
    repel = Repel()
    with pytest.raises(ValueError):
        repel.steps = -5
    with pytest.raises(ValueError):
        Adversarial(batch_size=0)
