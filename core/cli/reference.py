"""The reference of every command, out of the commands themselves: `python -m intsr.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from intsr.cli.main import cli

_HEAD = """# The command line

Made from the commands themselves by `python -m intsr.cli.reference`; the tests hold it to them.

Every command takes `--json` (one JSON value on stdout and nothing else there; `upscale` gives one a picture), `-q`
(errors only), `-v` (details) and `-h`. Exit codes: 0 ok, 1 some inputs failed, 2 usage, 3 the engine does not fit
this machine, 4 out of memory, 130 interrupted. Errors are one line: where, what was found, what was expected, what to
do.
"""
_COMMON = ("as_json", "quiet", "verbose")


def markdown() -> str:
    """The whole page."""
    with click.Context(cli, info_name="intsr", **cli.context_settings) as context:
        names = cli.list_commands(context)
        links = " · ".join(f"[{name}](#intsr-{name})" for name in names)
        sections = [_section(context, name) for name in names]
    return "\n".join([_HEAD, links, "", *sections])


def _section(parent: click.Context, name: str) -> str:
    command = cli.get_command(parent, name)
    assert command is not None, name
    with click.Context(command, parent=parent, info_name=name) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        lines = [f"## intsr {name}", "", f"    intsr {name} {usage}", ""]
        lines += [" ".join(part.split()) + "\n" for part in (command.help or "").split("\n\n")]
        rows = list(_option_rows(command, context))
        if rows:
            lines += ["| option | meaning |", "|---|---|", *rows, ""]
        if command.epilog:
            examples = command.epilog.partition(":")[2].split(";")
            lines += ["Example:", "", *(f"    {example.strip()}" for example in examples), ""]
    return "\n".join(lines)


def _option_rows(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in _COMMON and not parameter.hidden:
            # click's own words, with types and defaults as --help has them.
            record = parameter.get_help_record(context)
            assert record is not None, parameter.name
            names, words = (" ".join(text.split()).replace("|", "\\|") for text in record)
            yield f"| `{names}` | {words} |"


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
