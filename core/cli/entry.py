"""Where the `intsr` process begins: Ctrl-C is answered from here on, also while the rest is still being imported."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Any


def run() -> None:
    """The command's entry point."""
    _fill_standard_streams()
    _keep_on_without_stderr()
    # Where a shell started this in its background, Ctrl-C is not meant for it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    from intsr.cli.main import run_command

    run_command()


def _fill_standard_streams() -> None:
    """Where one was closed (`2>&-`), the next file that is opened would get its number, and a library's messages."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free: this one.
            os.open(os.devnull, os.O_RDWR)


class _Unbreakable(io.FileIO):
    """Takes all that is written: words for people who are gone, or do not read, must not end the work."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            # None where a pipe that does not wait is full.
            super().write(data)
        return memoryview(data).nbytes


def _keep_on_without_stderr() -> None:
    """Whoever reads stderr may go in the middle (a closed terminal, `2>&1 | head`)."""
    if sys.stderr is not None:
        raw = _Unbreakable(2, "w", closefd=False)
        encoding = sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # Nothing has been opened, so nothing needs to be cleaned up; an exception would come out of an import. The empty
    # line is for the terminal, which has written ^C.
    with contextlib.suppress(OSError):
        os.write(2, b"\nintsr: interrupted\n")
    os._exit(128 + number)
