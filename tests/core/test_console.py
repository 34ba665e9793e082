"""JSON alone on stdout, words on stderr, silence with -q."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from intsr.cli import console
from intsr.cli.console import common_options, detail, emit_json, progress, say


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


def test_verbosity_is_that_of_one_command():
    said = {("-q",): "", (): "said\n", ("-v",): "said\ndetailed\n", ("-v", "-q"): ""}
    for options, stderr in said.items():
        result = CliRunner().invoke(speak, options, catch_exceptions=False)
        assert (result.stdout, result.stderr) == ("", stderr), options


def test_json_is_one_line_of_numbers_that_it_has():
    result = CliRunner().invoke(speak, ["--json"], catch_exceptions=False)
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"a": [1, 2.5, None], "b": "é\n"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json({"a": float("nan")})


def test_progress_yields_everything_on_a_terminal_too(monkeypatch):
    assert list(progress(iter("abc"), "Working")) == ["a", "b", "c"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress(iter("abc"), "Working", total=3)) == ["a", "b", "c"]


def test_a_closed_stderr_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert list(progress(iter("abc"), "Working", total=3)) == ["a", "b", "c"]
    with console.meter("Working", 3) as advance:
        advance(1, "so far")
    say("to nobody")


@pytest.mark.parametrize("in_json", [False, True])
def test_lines_stand_above_the_bar(in_json):
    """On a real terminal, as click would write to it past the bar's own redirection."""
    code = f"""
from intsr.cli.console import emit_json, progress, tell
for i in progress(range(3), "Working"):
    emit_json(f"line {{i}}") if {in_json} else tell(f"line {{i}} [bold]:smile:")
"""
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    streams = {"stdout": terminal, "stderr": terminal, "stdin": terminal}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **streams) as process:
        os.close(terminal)
        shown = b""
        # The end of a terminal is an error to Linux.
        with contextlib.suppress(OSError):
            while part := os.read(screen, 4096):
                shown += part
    os.close(screen)
    assert process.returncode == 0
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown)
    assert b"Working" in plain
    for i in range(3):
        line = b'"line %d"' % i if in_json else b"line %d [bold]:smile:" % i
        before, found, after = plain.partition(line)
        assert found and before.endswith((b"\r", b"\n", b"\x1b[2K")), plain
        assert after.startswith(b"\r\n")


def test_without_a_terminal_a_line_now_and_then(monkeypatch, capsys):
    seconds = iter([0, 10, 40, 50, 100, 7000, 7000])
    monkeypatch.setattr(console, "_now", lambda: float(next(seconds)))
    steps = progress(iter(range(5)), "Working", total=100)
    assert list(steps) == list(range(5))
    assert capsys.readouterr().err.splitlines() == [
        "Working: 2 of 100, about 33 min left",
        "Working: 4 of 100, about 40 min left",
        "Working: 5 of 100, about 36.9 h left",
    ]
    seconds = iter([0, 31, 62])
    assert list(progress(iter("ab"), "Working")) == ["a", "b"]
    assert capsys.readouterr().err == "Working: 1 done\nWorking: 2 done\n"
