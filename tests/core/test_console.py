"""JSON alone on stdout, words on stderr, silence with -q."""

import json

import click
import pytest
from click.testing import CliRunner

from intsr import console
from intsr.console import Stopwatch, TileSizes, common_options, detail, emit_json, progress, say


@pytest.fixture(autouse=True)
def _normal_verbosity(monkeypatch):
    monkeypatch.setattr(console, "_verbosity", 1)


@click.command()
@common_options
def speak(as_json):
    say("said")
    detail("detailed")
    for _ in progress(range(3), "Working"):
        pass
    if as_json:
        emit_json({"a": [1, 2.5, None], "b": "é\n"})


@pytest.mark.parametrize(("option", "stderr"), [(None, "said\n"), ("-q", ""), ("-v", "said\ndetailed\n")])
def test_verbosity(option, stderr):
    result = CliRunner().invoke(speak, ["--json", *([option] if option else [])], catch_exceptions=False)
    assert result.stderr == stderr
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"a": [1, 2.5, None], "b": "é\n"}


def test_nothing_on_stdout_without_json():
    assert CliRunner().invoke(speak, [], catch_exceptions=False).stdout == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_a_bug_here(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json({"a": value})


def test_progress_yields_everything_on_a_terminal_too(monkeypatch):
    assert list(progress(iter("abc"), "Working")) == ["a", "b", "c"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress(iter("abc"), "Working", total=3)) == ["a", "b", "c"]


def test_stopwatch_runs_forward():
    watch = Stopwatch()
    first = watch.seconds
    assert 0 <= first <= watch.seconds < 60


def test_quiet_lasts_for_one_command_only():
    @click.command()
    @console.common_options
    def speak(as_json):
        console.say("hello")

    runner = CliRunner()
    assert runner.invoke(speak, ["-q"]).stderr == ""
    assert runner.invoke(speak, []).stderr == "hello\n"
    assert runner.invoke(speak, ["-v", "-q"]).stderr == ""


@pytest.mark.parametrize(("text", "sizes"), [("128", (128,)), ("128,64", (128, 64)), (" 64 , 128", (64, 128))])
def test_tile_sizes(text, sizes):
    assert TileSizes().convert(text, None, None) == sizes


@pytest.mark.parametrize("text", ["", ",", "128,", "a", "1e3", "0", "-64", "64,64", "1.5", "\u0664"])
def test_what_is_no_tile_size(text):
    with pytest.raises(click.UsageError, match="for example 128,64"):
        TileSizes().convert(text, None, None)
