"""Which pictures of a folder are calibrated on: those that can be read and show something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from intsr.errors import ImageError, UsageError
from intsr.runtime.pictures.rgb8 import read_pixels


def usable_pictures(
    pictures: Sequence[Path], limit: int | None, skip: Callable[[ImageError], None] = lambda error: None
) -> list[Path]:
    """In order, the first `limit` that can be read whole, are opaque, and not of one flat colour.

    skip: told of each that is passed over. Raises ImageError or UsageError where none is left.
    """
    chosen: list[Path] = []
    errors: list[ImageError] = []
    for path in pictures:
        if len(chosen) == limit:
            break
        try:
            pixels = read_pixels(path)
            if (pixels == pixels[:1, :1]).all():
                raise ImageError(path, "shows nothing: one flat colour", "a picture with detail")
        except ImageError as error:
            errors.append(error)
            skip(error)
        else:
            chosen.append(path)
    if not chosen and len(errors) == 1:
        raise errors[0]
    if not chosen:
        got = f"none of its {len(errors)} pictures can be used"
        raise UsageError(pictures[0].parent, got, fix=f"the first: {errors[0]}")
    return chosen
