"""The layout of --help."""

import re

import pytest
from click.testing import CliRunner

from atu.cli.main import cli


def help_of(*words):
    return CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "80"}).output


def sections(text):
    return [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]


def test_commands_most_people_need_come_first():
    text = help_of()
    assert sections(text) == ["Options", "Commands", "Further commands"]
    listed = text[text.index("Commands:") :]
    assert listed.index("  demo ") < listed.index("  unlearn ") < listed.index("  inspect ") < listed.index("  bench ")
    assert all(f"\n  {name} " in listed for name in cli.commands) and "..." not in listed


@pytest.mark.parametrize("name", ["unlearn", "eval", "audit", "label", "sample"])
def test_options_are_in_groups_and_none_is_lost(name):
    text = help_of(name)
    assert sections(text)[-1] == "More options" and "Output" in sections(text)
    command = cli.commands[name]
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden:
            name = max(param.opts, key=len)
            assert len(re.findall(rf"^  (?:-\w, |--\w+, )?{name}\b(?!-)", text, re.MULTILINE)) == 1, name
    assert max(map(len, text.splitlines())) <= 80


def test_a_few_options_need_no_groups():
    assert sections(help_of("release")) == ["Options"]
