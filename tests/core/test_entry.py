"""The first milliseconds of the process, while most of it is still being imported."""

from __future__ import annotations

import subprocess
import sys

# Ctrl-C comes as soon as the command line itself is imported, and once more when it begins.
_INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("intsr.cli", "importlib.metadata"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from intsr.entry import run
run()
"""


def _run(code: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", code, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


def test_ctrl_c_while_importing_is_one_line() -> None:
    assert _run(_INTERRUPTED) == (130, "", "\nintsr: interrupted\n")


def test_ctrl_c_when_the_command_line_is_there_is_the_same_line() -> None:
    assert _run(_INTERRUPTED.replace('"intsr.cli", ', "")) == (130, "", "\nintsr: interrupted\n")


def test_in_a_shells_background_ctrl_c_is_for_somebody_else() -> None:
    code, shown, error = _run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + _INTERRUPTED)
    assert (code, error) == (0, "")
    assert shown.startswith("intsr, version")
