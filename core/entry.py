"""Where the `intsr` process begins: Ctrl-C is answered from here on, also while the rest is still being imported."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


def run() -> None:
    """The command's entry point."""
    _fill_standard_streams()
    # Where a shell started this in its background, Ctrl-C is not meant for it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    from intsr.cli import run_command

    run_command()


def _fill_standard_streams() -> None:
    """Where one was closed (`2>&-`), the next file that is opened would get its number, and a library's messages."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free: this one.
            os.open(os.devnull, os.O_RDWR)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # Nothing has been opened, so nothing needs to be cleaned up; an exception would come out of an import. The empty
    # line is for the terminal, which has written ^C.
    with contextlib.suppress(OSError):
        os.write(2, b"\nintsr: interrupted\n")
    os._exit(128 + number)
