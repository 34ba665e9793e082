"""Several threads with one engine: its buffers are one thread's at a time, and calls take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from intsr.runtime.backends.protocol import closed_error

T = TypeVar("T")
_END = object()


class TakesTurns:
    """The base of what one thread uses at a time. where: for errors."""

    def __init__(self, where: object) -> None:
        # Reentrant: a turn may be made of others.
        self._lock, self._closed, self._where = threading.RLock(), False, where

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others waiting: inside, all is this thread's. Raises what `check_usable` raises."""
        with self._lock:
            self.check_usable()
            yield

    def check_usable(self) -> None:
        """Raises UsageError after `close`."""
        if self._closed:
            raise closed_error(self._where)

    def close(self) -> None:
        """Close it once nobody has a turn; whoever is between two of his own then gets UsageError."""
        with self._lock:
            self._closed = True
            self._free()

    def _free(self) -> None:
        """Free what `close` frees; a second time does nothing."""


def in_turns(items: Generator[T], turn: Callable[[], AbstractContextManager[None]]) -> Generator[T]:
    """Yield the same items, each step in a turn of its own.

    None is held in between: whoever takes them may take his time, wait for another thread that uses the engine, or go
    on in another thread.
    """
    try:
        while True:
            with turn():
                item = next(items, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        # Without a turn: the garbage collector may end it, in any thread, one that somebody with a turn waits for.
        items.close()
