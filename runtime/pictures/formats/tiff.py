"""TIFF and BigTIFF: judged by the header, then read by libvips, or by Pillow where libvips does not."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ICCPROFILE, RESOLUTION_UNIT, X_RESOLUTION, XMP, Y_RESOLUTION

from intsr.arrays import Array
from intsr.runtime.pictures import pillow
from intsr.runtime.pictures.metadata import ORIENTATION, Tags, append_exif, exif_from_tags, tags_from_directory
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureFile, PictureFormat, PictureHeader
from intsr.runtime.pictures.tiff.kind import TiffKind, kind_of_tiff
from intsr.runtime.pictures.tiff.pages import STRIP_ROWS, TILE_ROWS, Page, picture_page
from intsr.runtime.pictures.vips import Samples, read_samples, save_by_vips

# Offsets of 32 bits reach to 4 GiB; deflate can make noise a little longer than it was.
_BIG_TIFF_BYTES = 3 << 30
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Inches by TIFF's number of the unit.
_UNIT_INCHES = {2: 1.0, 3: 1 / 2.54}


class _Tiff(PictureFormat):
    name = "TIFF"
    suffixes = (".tif", ".tiff")
    head = rb"II[*+]\0|MM\0[*+]"
    place = 4
    holds_alpha = holds_16_bits = True

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        page, notes = picture_page(path, file)
        kind = kind_of_tiff(path, page)
        tags = _tags(file, page).values
        in_xmp = _XMP_ORIENTATION.search(pillow.bytes_or_nothing(tags.get(XMP)))
        orientation = pillow.orientation_from_tags(({ORIENTATION: int(in_xmp[1])} if in_xmp else {}) | tags)
        width_px, height_px = page.size if orientation < 5 else page.size[::-1]
        rows = (*page.numbers.get(TILE_ROWS, ()), *page.numbers.get(STRIP_ROWS, ()), page.size[1])[0]
        return PictureHeader(
            path=path,
            format=self.name,
            width_px=width_px,
            height_px=height_px,
            bits=kind.read_bits,
            channels=kind.read_channels,
            has_alpha=kind.alpha is not None,
            orientation=orientation,
            decoder_bytes=_decoder_bytes(kind, rows / page.size[1]),
            notes=(*notes, *kind.notes),
            details=(page, kind),
        )

    def decode(self, header: PictureHeader) -> LoadedImage:
        page, kind = header.details
        with PictureFile(header.path) as file:
            tags = _tags(file, page)
            icc_profile = pillow.bytes_or_nothing(tags.values.get(ICCPROFILE))
            notes: tuple[str, ...] = ()
            if kind.by_pillow:
                pixels, alpha, notes = _read_by_pillow(file, header)
            else:
                to_rgb = None
                if kind.inks:
                    convert, note = pillow.rgb_from_cmyk(icc_profile)
                    to_rgb, notes = (lambda rows: np.asarray(convert(Image.fromarray(rows, "CMYK")))), (note,)
                samples = Samples(
                    page.size, kind.colours, kind.bits, kind.alpha, to_rgb=to_rgb, page=page.number, sub=page.sub
                )
                pixels, alpha = read_samples(file, samples)
        unit = _UNIT_INCHES.get(tags.values.get(RESOLUTION_UNIT, 2))
        sides = (tags.values.get(X_RESOLUTION), tags.values.get(Y_RESOLUTION))
        dpi = pillow.dpi_of_upright(sides, turned=header.orientation >= 5)
        metadata = ImageMetadata(
            exif_from_tags(tags, (header.width_px, header.height_px)),
            # A profile of inks does not fit what became of them.
            b"" if kind.inks else icc_profile,
            pillow.bytes_or_nothing(tags.values.get(XMP)),
            dpi=(dpi[0] / unit, dpi[1] / unit) if dpi and unit else None,
        )
        return LoadedImage(pixels, alpha, metadata, (*header.notes, *notes))

    def save(self, image: Any, path: Path, metadata: ImageMetadata, quality: int | None) -> None:
        samples_bytes = 2 if image.format == "ushort" else 1
        big = image.width * image.height * image.bands * samples_bytes > _BIG_TIFF_BYTES
        settings = {"compression": "deflate", "level": 4, "predictor": "horizontal", "bigtiff": big}
        save_by_vips(image, path, "tiffsave_target", metadata, **settings)
        append_exif(path, metadata.exif, (image.width, image.height))


def _tags(file: PictureFile, page: Page) -> Tags:
    """Read the picture's directory, and what it does not say from the first one, which may be its preview's."""
    return tags_from_directory(file) | tags_from_directory(file, page.offset)


def _decoder_bytes(kind: TiffKind, strip_height: float) -> int:
    """Return what a strip or a row of tiles takes for each pixel of the picture, which it may be the whole of.

    strip_height: as a part of the picture's.
    """
    file_bytes = kind.samples * kind.bits / 8 * min(strip_height, 1) * (1 + kind.in_pieces)
    if kind.by_pillow:
        # Its arrays are made when the decoder is through with it.
        channels = kind.read_channels + (kind.alpha is not None)
        file_bytes += PictureFormat.decoder_bytes - channels * kind.read_bits // 8
    return max(PictureFormat.decoder_bytes, math.ceil(file_bytes))


def _read_by_pillow(file: PictureFile, header: PictureHeader) -> tuple[Array, Array | None, tuple[str, ...]]:
    page, kind = header.details
    # So that the picture's directory is the first.
    code, place = ("Q", 8) if page.big else ("I", 4)
    file.patches = {place: struct.pack(page.order + code, page.offset)}
    with pillow.opened(file, header.format) as image:
        pillow.check_mode(header.path, image)
        # Packed values of 12 bits are left as they are.
        peak = 4095 if "I;12" in pillow.stored_modes(image) else pillow.PEAK_16
        # Pillow would turn the picture by what it finds here, and who reads it turns it once more.
        image.getexif()[ORIENTATION] = 1
        image.load()
        return pillow.arrays_from_image(image, kind.alpha is not None, peak)


FORMAT = _Tiff()
