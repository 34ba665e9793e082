"""Ctrl-C while another thread works on what must not go away under it."""

from __future__ import annotations

from collections.abc import Callable


def wait_through(wait: Callable[[], object]) -> None:
    """Call `wait` until it returns; a Ctrl-C meanwhile is raised only then.

    For waits that are not `Thread.join`, which Python 3.11 takes for done when it is interrupted (bpo-45274): the
    process would then end under the thread.
    """
    interrupt: BaseException | None = None
    while True:
        try:
            wait()
            break
        # SIGTERM comes as the second.
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
