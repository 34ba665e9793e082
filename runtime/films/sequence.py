"""Numbered pictures as a film: `frames/%06d.png` in the place of a film's name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError, IntsrError
from intsr.runtime.films.names import numbered_pictures
from intsr.runtime.films.types import Colours, FilmFacts, FilmOptions, Frame
from intsr.runtime.pictures.reader import read_header, read_image

# H.273: BT.709's matrix and primaries, sRGB's transfer, limited range.
_SRGB = Colours(matrix=1, primaries=1, transfer=13, range=1)


class SequenceReader:
    """Numbered pictures that are read as a film: the least number is its first frame, and gaps are none.

    Has what `FilmReader` has, and numbers: of the wanted pictures, by their frames' time. Raises ImageError,
    UsageError.
    """

    def __init__(self, path: Path, options: FilmOptions) -> None:
        self.problem, self.start_pts = "", 0
        self.span: tuple[Fraction, Fraction | None] | None = None
        self._broken: list[str] = []
        pictures = list(numbered_pictures(path).items())
        first, wanted = math.ceil(options.start_s * options.fps), len(pictures)
        if options.duration_s is not None:
            wanted = math.ceil(options.duration_s * options.fps)
        chosen = pictures[first : first + wanted]
        self.numbers = [number for number, _ in chosen]
        self._pictures = [picture for _, picture in chosen]
        if not chosen:
            raise ImageError(path, f"{len(pictures)} pictures, none of them wanted", "numbered pictures")
        header = read_header(self._pictures[0])
        self._size = header.width_px, header.height_px
        self.facts = FilmFacts(
            path=path,
            width_px=header.width_px,
            height_px=header.height_px,
            bits=header.bits,
            pixel_format="yuv420p10le" if header.bits == 16 else "yuv420p",
            time_base=1 / options.fps,
            rate=options.fps,
            frames=len(self._pictures),
            colours=_SRGB,
            notes=("transparency dropped: films are upscaled opaque",) if header.has_alpha else (),
        )

    def frames(self, after: int | None = None) -> Iterator[Frame]:
        """Yield the wanted pictures, their place among them as their time. after: only those behind this place."""
        for place, path in enumerate(self._pictures):
            if after is not None and place <= after:
                continue
            try:
                pixels = self._pixels(path)
            except IntsrError as error:
                self._broken.append(str(error))
                continue
            yield Frame(place, pixels, 1)
        if self._broken:
            more = f", and {len(self._broken) - 1} more" if len(self._broken) > 1 else ""
            self.problem = f"{self._broken[0]}{more}"

    def _pixels(self, path: Path) -> Array:
        loaded = read_image(path).pixels
        height, width = loaded.shape[:2]
        if (width, height) != self._size:
            got = f"{width}x{height} pixels"
            raise ImageError(path, got, f"{self._size[0]}x{self._size[1]}, as the first of the sequence")
        pixels = loaded if loaded.ndim == 3 else np.repeat(loaded[..., None], 3, axis=2)
        if pixels.dtype == np.uint16 and self.facts.bits == 8:
            return (pixels >> 8).astype(np.uint8)
        return pixels if pixels.dtype.itemsize * 8 == self.facts.bits else pixels.astype(np.uint16) * 257

    def close(self) -> None:
        """Nothing is open in between."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
