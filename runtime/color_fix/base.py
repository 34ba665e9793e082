"""What a colour fix owes the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from intsr.arrays import Array


class ColorFix(Protocol):
    """Bands in, bands out, of other heights perhaps. Close it, or use it to its end."""

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        """Take the next band. target: (3, h, W) float32 in [0, 1], which it may overwrite. reference: three times
        (h, W), the enlarged input. Yields fixed bands (3, h', W) float32, not clipped.
        """
        ...

    def finish(self) -> Iterator[Array]:
        """Yield what is still held after the last band."""
        ...

    def close(self) -> None: ...
