"""Signals and lost streams, from the first milliseconds of the process on."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Ctrl-C comes as soon as the command line itself is imported, and once more when it begins.
_INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("intsr.cli.main", "importlib.metadata"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from intsr.cli.entry import run
run()
"""


def _run(code: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", code, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("later", [False, True])
def test_ctrl_c_from_the_first_import_on_is_one_line(later: bool) -> None:
    code = _INTERRUPTED.replace('"intsr.cli.main", ', "") if later else _INTERRUPTED
    assert _run(code) == (130, "", "\nintsr: interrupted\n")


def test_in_a_shells_background_ctrl_c_is_for_somebody_else() -> None:
    code, shown, error = _run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + _INTERRUPTED)
    assert (code, error) == (0, "")
    assert shown.startswith("intsr, version")


def test_a_closed_stream_is_no_file_of_ours() -> None:
    """The next file that is opened would be number 2, where C libraries write their messages."""
    code = """
import os
for number in (0, 2):
    os.close(number)
from intsr.cli import signals
signals.fill_standard_streams()
print([os.readlink(f"/proc/self/fd/{number}") for number in (0, 2)], os.open("/dev/zero", os.O_RDONLY) > 2)
"""
    assert _run(code)[:2] == (0, "['/dev/null', '/dev/null'] True\n")


_WORDS_WITHOUT_READERS = """
import os, sys
from intsr.cli import entry, main as cli
import click

@click.command()
def probe():
    {lose}
    for number in range(3):
        click.echo("for people", err=True)
        sys.stderr.write("more\\n")
        click.echo(str(number))

cli.LazyGroup.get_command = lambda self, context, name: probe
sys.argv = ["intsr", "info"]
entry.run()
"""


@pytest.mark.parametrize(
    "lose",
    [
        "os.close(2)",
        # A pipe without a reader, one that is full, a device that is.
        "ends = os.pipe(); os.dup2(ends[1], 2); os.close(ends[0])",
        "ends = os.pipe(); os.set_blocking(ends[1], False); os.dup2(ends[1], 2); os.write(2, bytes(65536))",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    ],
)
def test_stderr_that_is_lost_stops_nothing(lose: str) -> None:
    code, shown, _ = _run(_WORDS_WITHOUT_READERS.format(lose=lose))
    assert (code, shown) == (0, "0\n1\n2\n")


def test_ctrl_c_with_stderr_closed_is_the_same_code() -> None:
    closed = "import os, sys; os.close(2); sys.stderr = None" + _INTERRUPTED
    assert _run(closed)[0] == 130
    assert _run("import os, sys; os.close(2); sys.stderr = None\nfrom intsr.cli.entry import run\nrun()")[0] == 0


_SIGNALLED = """
import os, signal, sys, types
import click
from intsr.cli import entry, main as cli
SIGNAL = signal.{name}
signal.signal(SIGNAL, signal.{before})
@click.command()
def probe():
    try:
        os.kill(os.getpid(), SIGNAL)
        for _ in range(1000):
            pass
        print("still here")
    except BaseException:
        # As OpenVINO's module does: an exception within its import becomes this one.
        raise {raised}
    finally:
        print("cleaned up")
cli.LazyGroup.get_command = lambda self, ctx, name: probe
sys.argv = ["intsr", "probe"]
entry.run()
"""


def _signalled(name, before="SIG_DFL", raised=""):
    return _run(_SIGNALLED.format(name=name, before=before, raised=raised))


@pytest.mark.parametrize(
    ("name", "code", "raised"),
    [("SIGTERM", 143, ""), ("SIGHUP", 129, "ImportError('lost')"), ("SIGTERM", 143, "cli.IntsrError('a', 'got')")],
)
def test_a_signal_ends_it_with_its_own_code_after_cleaning_up(name, code, raised):
    assert _signalled(name=name, raised=raised) == (code, "cleaned up\n", "")


def test_ctrl_c_is_one_line_whatever_a_library_makes_of_it():
    for raised in ("", "ImportError('initialization failed')"):
        code, out, err = _signalled(name="SIGINT", before="default_int_handler", raised=raised)
        assert (code, out, err.strip()) == (130, "cleaned up\n", "intsr: interrupted")


def test_under_nohup_a_closed_terminal_ends_nothing():
    assert _signalled(name="SIGHUP", before="SIG_IGN") == (0, "still here\ncleaned up\n", "")
