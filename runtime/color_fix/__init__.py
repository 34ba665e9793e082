"""Give the output the colours of the input: one-step diffusion shifts them. Over the whole picture, never per tile.

The picture comes and goes in bands of rows, top to bottom, so that none of it need be held whole; what comes out has
the same bits however it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.runtime.color_fix.adain import AdainFix
from intsr.runtime.color_fix.wavelet import WaveletFix
from intsr.types import COLOR_FIXES


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


class NoFix:
    """The colours as the networks made them."""

    def push(self, target: Array, reference: Iterable[Array]) -> Iterator[Array]:
        yield target

    def finish(self) -> Iterator[Array]:
        return iter(())

    def close(self) -> None:
        pass


def open_color_fix(name: str, spill_folder: Path | None = None) -> ColorFix:
    """Return a new fix: `wavelet`, `adain` or `none`. spill_folder: where `adain` keeps rows that are too many for
    memory; None for the system's place for temporary files. Raises UsageError.
    """
    if name not in COLOR_FIXES:
        raise UsageError("--color-fix", repr(name), f"one of {', '.join(COLOR_FIXES)}")
    if name == "wavelet":
        return WaveletFix()
    return AdainFix(spill_folder) if name == "adain" else NoFix()
