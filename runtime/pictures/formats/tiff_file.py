"""The picture of a TIFF: which directory it is, what its pixels are, and what describes it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from intsr.runtime.pictures.formats.tiff import ICC, PIXEL_TAGS, STRIP_ROWS, TILE_ROWS, XMP
from intsr.runtime.pictures.formats.tiff_kind import TiffKind, kind_of_tiff
from intsr.runtime.pictures.formats.tiff_pages import Page, picture_page
from intsr.runtime.pictures.formats.unread import is_tiff
from intsr.runtime.pictures.header import ImageInfo, too_many_pixels
from intsr.runtime.pictures.metadata.exif import Directory, Layout, numbers, read_directory, values
from intsr.runtime.pictures.metadata.fields import directory_from_tiff, orientation_from_directory
from intsr.runtime.pictures.metadata.resolution import density_from_resolution

_NOT_PIXELS = frozenset(range(65536)) - PIXEL_TAGS
# Pillow's copy of a pixel.
_PILLOW_BYTES = 4


@dataclass(frozen=True, slots=True)
class TiffFile:
    """rows: of a strip or a tile. described: the tags that describe the picture. notes: what of the file is not read,
    for people.
    """

    page: Page
    kind: TiffKind
    layout: Layout
    rows: int
    described: Directory
    notes: tuple[str, ...]

    @property
    def orientation(self) -> int:
        return orientation_from_directory(self.described)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return self.page.size if self.orientation < 5 else self.page.size[::-1]

    @property
    def icc_profile(self) -> bytes:
        return values(self.described, ICC)

    @property
    def xmp(self) -> bytes:
        return values(self.described, XMP)

    @property
    def density(self) -> bytes:
        return density_from_resolution(self.described)

    @property
    def patches(self) -> dict[int, bytes]:
        """What to put at which offset of the file, so that the picture's directory is the first."""
        if self.layout.big:
            return {8: struct.pack(self.layout.order + "Q", self.page.offset)}
        return {4: struct.pack(self.layout.order + "I", self.page.offset)}

    @property
    def info(self) -> ImageInfo:
        kind = self.kind
        grey, has_alpha = kind.read_channels == 1, kind.alpha is not None
        mode = ("LA" if has_alpha else "L") if grey else ("RGBA" if has_alpha else "RGB")
        return ImageInfo(*self.size, mode, has_alpha, kind.read_bits, kind.read_channels, self._decoder_bytes)

    @property
    def _decoder_bytes(self) -> int:
        """A strip or a row of tiles, which may be the whole picture; twice where rows are put together."""
        kind, has_alpha = self.kind, self.kind.alpha is not None
        file_bytes = kind.samples * kind.bits / 8 * min(self.rows / self.page.size[1], 1) * (1 + kind.in_pieces)
        if kind.by_pillow:
            # Its arrays are made when the decoder is through with it.
            file_bytes += _PILLOW_BYTES - (kind.read_channels + has_alpha) * kind.read_bits // 8
        return max(_PILLOW_BYTES, math.ceil(file_bytes))


def tiff_from_path(path: Path) -> TiffFile | None:
    """None where the file is no TIFF. Raises ImageError for what is not read, and what broken data raises."""
    if not is_tiff(path):
        return None
    with path.open("rb") as file:
        page, notes = picture_page(path, file)
        if Image.MAX_IMAGE_PIXELS is not None and page.area > 2 * Image.MAX_IMAGE_PIXELS:
            raise too_many_pixels(path)
        broken: list[int] = []
        directory, layout, _ = read_directory(file, _NOT_PIXELS, broken, page.offset)
        if broken:
            raise ValueError(f"broken tag {broken[0]}")
        kind = kind_of_tiff(path, directory, layout)
        described, more = directory_from_tiff(file, page.offset)
    rows = (*numbers(directory, TILE_ROWS), *numbers(directory, STRIP_ROWS), page.size[1])[0]
    return TiffFile(page, kind, layout, rows, described, (*notes, *kind.notes, *more))
