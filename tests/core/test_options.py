"""Values of options, and options that would change nothing."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from intsr.cli.options import TileSizes, refuse_given
from intsr.errors import UsageError


@pytest.mark.parametrize(("text", "sizes"), [("128", (128,)), ("128,64", (128, 64)), (" 64 , 128", (64, 128))])
def test_tile_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert TileSizes().convert(text, None, None) == sizes


@pytest.mark.parametrize("text", ["", "128,", "0", "-64", "64,64", "1.5", "\u0664"])
def test_what_is_no_tile_size(text: str) -> None:
    with pytest.raises(click.UsageError, match="for example 128,64"):
        TileSizes().convert(text, None, None)


@click.command()
@click.option("-b", "--bits", default="w8a8")
@click.option("--fast", is_flag=True)
def probe(bits: str, fast: bool) -> None:
    refuse_given(("bits", "fast"), "--calibration", "one of them", "leave it out")


@pytest.mark.parametrize(
    ("arguments", "option"), [([], ""), (["--fast"], "--fast"), (["--bits", "w8a8"], "-b"), (["-b1", "--fast"], "-b")]
)
def test_an_option_without_effect_is_an_error_only_where_it_was_written(arguments: list[str], option: str) -> None:
    error = CliRunner().invoke(probe, arguments).exception
    if option:
        assert isinstance(error, UsageError)
        assert str(error) == f"{option}: together with --calibration; expected one of them; leave it out"
    else:
        assert error is None
