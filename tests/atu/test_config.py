"""Settings: TOML there and back, and every mistake named."""

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from atu import presets
from atu.config import Adversarial, Config, Repel
from atu.config_toml import commented, settings
from atu.methods.registry import METHODS, Method
from atu.support.toml import tomllib


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
    data["adapt"]["fisher"].update(parameters=["conv", r"\.weight$"])
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
        ({"repel": {"guide-weight": 5}}, ["repel.guide-weight"]),
        ({"repel": {"steps": -1}}, ["repel.steps", "-1"]),
        ({"repel": {"steps": 1.5}}, ["repel.steps", "1.5"]),
        ({"methods": {"nl2": {"reduction": "mean"}}}, ["methods.nl2.reduction", "relative"]),
        ({"methods": {"nl2": {"schedule": "step"}}}, ["methods.nl2.schedule", "cosine"]),
        ({"methods": {"el2": {"alpha": 0}}}, ["methods.el2.alpha"]),
        ({"repel": {"strength": float("nan")}}, ["repel.strength"]),
        ({"repel": {"strength": float("inf")}}, ["repel.strength"]),
        ({"adapt": {"models": 0}}, ["adapt.models", "0"]),
        ({"adapt": {"ewc_weight": "big"}}, ["adapt.ewc_weight", "big"]),
        ({"adapt": {"adversarial": {"augment": "colour"}}}, ["adapt.adversarial.augment", "colour", "color"]),
        ({"adapt": {"adversarial": {"beta1": 1.0}}}, ["adapt.adversarial.beta1"]),
        (
            {"repel": {"adversarial": {"r1_gamma": "some"}}},
            ["config: repel.adversarial.r1_gamma: Input should be a valid number", " or 'auto', got 'some'"],
        ),
        (
            {"repel": {"hold_weight": -1}},
            ["repel.hold_weight: Input should be greater than or equal to 0 or 'auto', got -1"],
        ),
        ({"adapt": {"fisher": {"n": 0}}}, ["adapt.fisher.n", "0"]),
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


def test_a_mistake_is_told_once():
    with pytest.raises(ValueError) as error:
        Config.from_dict({"repel": {"nearby_weight": "some"}})
    assert str(error.value).count("repel.nearby_weight") == 1


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


# --- the methods' own settings


def nested(kind):
    """A settings dataclass and those within it."""
    yield kind
    for one in dataclasses.fields(kind):
        value = getattr(kind(), one.name)
        if dataclasses.is_dataclass(value):
            yield from nested(type(value))


EVERY_CLASS = {kind for name in presets.METHODS if (own := METHODS.get(name).settings) for kind in nested(own)}
EVERY_CLASS |= set(nested(Config))


@pytest.mark.parametrize("kind", sorted(EVERY_CLASS, key=lambda kind: kind.__name__))
def test_every_setting_says_what_it_is(kind):
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    for one in settings(kind):
        assert one.description.endswith((".", ")")), f"{kind.__name__}.{one.name}: {one.description!r}"
        default = getattr(kind(), one.name)
        assert bool(one.allowed) != (dataclasses.is_dataclass(default) or isinstance(default, dict)), one
        assert default is not None or one.allowed.endswith(" or unset"), one


@pytest.mark.parametrize("name", presets.METHODS)
def test_a_config_is_for_one_method(name):
    method, config = METHODS.get(name), Config.of(name)
    assert isinstance(method, Method)
    assert list(config.methods) == ([] if method.settings is None else [name])
    if method.settings is None:
        with pytest.raises(ValueError, match=f"config: holds no settings of '{name}'"):
            config.own  # noqa: B018
    else:
        assert type(config.own) is method.settings and config.own == method.settings()
        assert Config(method=name).own == config.own


def test_a_method_named_to_the_constructor_brings_no_settings_of_its_own_and_is_told():
    for method in ("el2", "il2"):
        with pytest.raises(ValueError, match=rf"under the name of '{method}'.*Config\.of\('{method}'"):
            Config(method=method).check_preset()
        Config.of(method).check_preset()
        Config.of(method, data={"repel": {"hold_weight": "auto", "guide_weight": 4.0}}).check_preset()
    Config(method="cdc").check_preset()
    Config.of("extrapolate", data={"adapt": {"steps": 100}}).check_preset()  # as many as the default's


def test_settings_given_to_the_constructor_are_checked():
    config = Config(method="cdc", methods={"cdc": {"weight": 3}})
    assert config == Config.of("cdc", data={"methods": {"cdc": {"weight": 3}}})
    with pytest.raises(ValueError, match="batch"):
        Config(method="cdc", methods={"cdc": {"batch": 1}})
    with pytest.raises(ValueError, match="expected settings of 'cdc' alone, got those of 'ewc'"):
        Config(method="cdc", methods={"ewc": {}})


def test_tables_of_other_methods_are_checked_and_left_out():
    data = {"method": "cdc", "methods": {"cdc": {"weight": 3}, "ewc": {"weight": 2.0}}}
    assert Config.of(data=data) == Config.of("cdc", data={"methods": {"cdc": {"weight": 3.0}}})
    with pytest.raises(ValueError, match=r"config: methods\.ewc\.weight: .*got -1; .*repel\.steps: .*got -2"):
        Config.of(data={**data, "methods": {"ewc": {"weight": -1}}, "repel": {"steps": -2}})


def test_the_old_spelling_is_read():
    """cf_k in TOML was cf-k on the command line; now it is cf-k, and cf_k is taken as that."""
    for name in ("cf-k", "cf_k"):
        assert Config.of("cf-k", data={"methods": {name: {"k": 3}}}).own.k == 3
    with pytest.raises(
        ValueError, match=r"config: methods\.cf-k: given a second time|methods\.cf_k: given a second time"
    ):
        Config.of("cf-k", data={"methods": {"cf-k": {"k": 3}, "cf_k": {"k": 4}}})


@pytest.mark.parametrize(
    "tables, words",
    [
        ({"cfk": {}}, "methods.cfk: there is no method of this name with settings of its own"),
        ({"atu": {}}, "methods.atu: there is no method of this name with settings of its own"),
        ({"ewc": 3}, "methods.ewc: .*got 3"),
        ({"ewc": {"fisher": {"n": 0}}}, r"methods\.ewc\.fisher\.n: .*got 0"),
        ({"ewc": {"wait": 1}}, r"methods\.ewc\.wait: "),
        (3, "methods: expected a table for each method, got 3"),
    ],
)
def test_mistakes_in_the_tables_are_named(tables, words):
    with pytest.raises(ValueError, match=f"^config: {words}"):
        Config.from_dict({"methods": tables})


# --- commented TOML


@pytest.mark.parametrize("method", [None, *presets.METHODS])
def test_commented_toml_is_the_defaults(method, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(commented(method), encoding="utf-8")
    assert Config.load(path) == Config.of(method)


def names_of(group):
    """The names of a settings object's fields, nested."""
    values = {one.name: getattr(group, one.name) for one in dataclasses.fields(group)}
    return {name: names_of(value) if dataclasses.is_dataclass(value) else None for name, value in values.items()}


def names_in(data):
    return {name: names_in(value) if isinstance(value, dict) else None for name, value in data.items()}


def test_commented_toml_has_every_setting():
    """Each field of every table stands there, set or as a comment; with a method, only what the method uses."""
    text = commented()
    found = names_in(tomllib.loads(re.sub(r"^# (\w+) =$", r"\1 = 0", text, flags=re.MULTILINE)))
    expected = names_of(Config())
    expected["methods"] = {name: names_of(Config.of(name).own) for name in presets.METHODS if METHODS[name].settings}
    assert found == expected
    assert "# number above 0 or unset; default unset\n# lr =\n" in text
    assert "# Every how many steps R1 and R2 are applied. [steps]\n# whole number from 1; default 16\n" in text
    assert '# "constant" or "linear" or "cosine"; default "constant"\n' in commented("il2")
    assert set(tomllib.loads(commented("cdc"))) == {
        "method",
        "precision",
        "log_every",
        "save_every",
        "feedback",
        "methods",
    }
    assert "adapt" in tomllib.loads(commented("extrapolate")) and "repel" not in tomllib.loads(commented("extrapolate"))
    assert "ceiling = 4.0" in commented("nl2") and "default 4.0" in commented("nl2")


def values(hint):
    """Some allowed values of a setting's type, its bounds aside."""
    if "unset" in hint:
        return st.none() | values(hint.replace(" or unset", ""))
    if hint.startswith('"'):
        return st.sampled_from([word.strip('"') for word in hint.split(" or ")])
    if ' or "auto"' in hint:
        return st.just("auto") | values(hint.replace(' or "auto"', ""))
    kinds = {"whole": st.integers(3, 10**6), "number": st.floats(0.01, 0.99), "true": st.booleans()}
    return {**kinds, "list": st.lists(st.just(r"a\.b"))}[hint.split()[0]]


@st.composite
def configs(draw):
    """A Config with random values in every table that a method has."""
    config = Config.of(draw(st.sampled_from(list(presets.METHODS))))

    def change(group):
        for one in settings(type(group)):
            value = getattr(group, one.name)
            if dataclasses.is_dataclass(value):
                change(value)
            elif one.allowed and one.allowed != "text":
                setattr(group, one.name, draw(values(one.allowed)))

    for group in (config.feedback, config.adapt, config.repel, *config.methods.values()):
        change(group)
    return config


@examples(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_any_config_round_trips(config):
    again = Config.from_dict(tomllib.loads(config.to_toml()))
    assert again == config
