"""How `--help` is laid out: examples, then options in groups, what is used most first."""

from __future__ import annotations

import click

GROUPS = {
    "What to forget": ("negatives", "positives", "from", "class", "feature", "on", "marks"),
    "Who says so": ("oracle", "judge", "text", "no-oracle"),
    "How": ("method", "config", "seed", "device"),
    "Output": ("out", "samples", "require", "grid", "quiet"),
}
REST = "More options"
LATER = ("inspect", "config", "train-classifier", "release", "bench")  # commands that few need


class Command(click.Command):
    """Its options in the groups above, required ones first; of few options without groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: not param.required):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                found.setdefault(_group_of(param), []).append(record)
        if sum(map(len, found.values())) < 10:
            found = {"Options": [row for rows in found.values() for row in rows]}
        for title in (*GROUPS, REST, "Options"):
            if title in found:
                with formatter.section(title):
                    formatter.write_dl(found[title])


def _group_of(param: click.Parameter) -> str:
    names = {name.lstrip("-") for name in param.opts}
    return next((title for title, options in GROUPS.items() if names & set(options)), REST)


class Group(click.Group):
    """Its commands in the order in which they were added, those that few need at the end."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: name in LATER)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        for title, some in (("Commands", [n for n in names if n not in LATER]), ("Further commands", LATER)):
            rows = [(name, self.commands[name].get_short_help_str(60)) for name in some if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
