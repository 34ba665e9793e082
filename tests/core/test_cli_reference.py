"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from intsr.cli.main import COMMANDS
from intsr.cli.reference import markdown

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python -m intsr.cli.reference > docs/cli.md"


def test_every_command_has_a_section_with_an_example() -> None:
    text = markdown()
    for name in COMMANDS:
        section = text.partition(f"## intsr {name}\n")[2].partition("\n## ")[0]
        assert f"    intsr {name}" in section
        assert f"Example:\n\n    intsr {name}" in section, name


def test_options_are_those_of_help() -> None:
    section = markdown().partition("## intsr upscale\n")[2].partition("\n## ")[0]
    for option in ("`-o, --output PATH`", "`--skip-existing`", "`--color-fix [wavelet\\|adain\\|none]`"):
        assert option in section
