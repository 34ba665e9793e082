"""Give the output the colours of the input: one-step diffusion shifts them. Over the whole picture, never per tile.

The picture comes and goes in bands of rows, top to bottom, so that none of it need be held whole; what comes out has
the same bits however it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.runtime.color_fix.adain import AdainFix
from intsr.runtime.color_fix.base import ColorFix
from intsr.runtime.color_fix.wavelet import WaveletFix
from intsr.types import COLOR_FIXES


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


def fix_colors(image: Array, reference: Iterable[Array], color_fix: str) -> Array:
    """Fix a whole picture, in place.

    image: (3, H, W) float32 in [0, 1], overwritten. reference: three times (H, W), the enlarged input likewise.

    color_fix: `wavelet`, `adain` or `none`. Returns `image`, not clipped. Raises UsageError.
    """
    fix = open_color_fix(color_fix)
    # A copy: what is pushed may be overwritten while it is still needed.
    bands = [*fix.push(image.copy(), reference), *fix.finish()]
    image[:] = np.concatenate(bands, axis=1)
    return image
