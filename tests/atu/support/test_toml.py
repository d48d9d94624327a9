"""Settings from anybody: read, or refused at once."""

import time

import pytest

from atu.config import Config
from atu.config_toml import commented
from atu.support.toml import read_toml

PARTS = ".".join("a" * 100_000)
HOSTILE = {
    "dotted key": f"{PARTS} = 1",
    "quoted dotted key": ".".join(['"="'] * 50_000) + " = 1",
    "dotted header": f"[{PARTS}]",
    "dotted key of an inline table": f"a = {{{PARTS} = 1}}",
    "many dotted keys": "\n".join(f"[x{i}]\n" + ".".join("a" * 90) + " = 1" for i in range(1_200)),
    "lists": "a = " + "[" * 100_000 + "]" * 100_000,
    "lists within the parser's reach": "a = " + "[" * 90 + "]" * 90,
    "inline tables": "a = " + "{b = " * 20_000 + "1" + "}" * 20_000,
    "size": "# " + "x" * 2**20,
    "long number": "a = " + "9" * 200_000,
    "control characters": "a = \x1b[31m",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_settings_are_refused_at_once(tmp_path, text):
    path = tmp_path / "x.toml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^config: "):
        Config.load(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = 1\x00", b"a = [1"])
def test_damage_is_told(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"^mine: .*x\.toml (cannot be read|is not valid TOML)"):
        read_toml(tmp_path / "x.toml", "mine")


def test_all_settings_with_their_comments_pass(tmp_path):
    (tmp_path / "x.toml").write_text(commented(None))
    assert read_toml(tmp_path / "x.toml")
