"""Where the `intsr` process begins."""

from __future__ import annotations

import sys

from intsr.cli.signals import exit_code_of_signal, fill_standard_streams, handle_signals, keep_on_without_stderr
from intsr.errors import EXIT_INTERRUPTED


def run() -> None:
    """Run the command line, which is imported when signals are seen to."""
    fill_standard_streams()
    keep_on_without_stderr()
    handle_signals()
    try:
        from intsr.cli.main import main
    except BaseException:
        if exit_code_of_signal() != EXIT_INTERRUPTED:
            raise
        # The empty line is for the terminal, which has written ^C.
        print("\nintsr: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    main()
