"""Pictures that Pillow reads: the header without decoding, then pixels, transparency and metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.runtime.pictures.metadata import EXIF_HEADER, ORIENTATION
from intsr.runtime.pictures.picture import ImageMetadata, LoadedImage, PictureFile, PictureFormat, PictureHeader
from intsr.runtime.pictures.vips import Samples, read_samples

_GREY_MODES = ("1", "L", "LA")
_GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_ALPHA_MODES = ("LA", "PA", "RGBA")
PEAK_16 = 65535
# The highest of the levels in a PNG, by Pillow's name of what it holds.
_GREY_LEVELS = {"L;2": 3, "L;4": 15, "L": 255}
# Rows that are converted at once, so that a large picture is not in memory three times.
_ROWS = 64
_JPEG_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
# Metadata as text of a PNG, in hexadecimal; the last holds either.
_PNG_EXIF, _PNG_XMP, _PNG_APP1 = "Raw profile type exif", "Raw profile type xmp", "Raw profile type APP1"
# Text of a PNG that is metadata, or in which programs speak of themselves.
_USUAL_TEXTS = ("XML:com.adobe.xmp", "Software", "date:create", "date:modify", "date:timestamp")
_SRGB_GAMMA, _GAMMA_TOLERANCE = 0.45455, 0.001
_MOST_DPI = 1e6


class PillowFormat(PictureFormat):
    """A format that Pillow reads."""

    def notes_of_image(self, image: Image.Image) -> tuple[str, ...]:
        """Tell what of an opened image will be lost, for people."""
        return ()

    def read_header(self, path: Path, file: PictureFile) -> PictureHeader:
        return self.header_by_pillow(path, file)

    def decode(self, header: PictureHeader) -> LoadedImage:
        return self.decoded_by_pillow(header)

    def header_by_pillow(self, path: Path, file: PictureFile, is_late: bool = False) -> PictureHeader:
        """is_late: there is metadata behind the pixels, which Pillow finds only as it decodes."""
        with opened(file, self.name) as image:
            notes = self.notes_of_image(image)
            stored, frames = stored_modes(image), getattr(image, "n_frames", 1)
            grey_16 = image.mode in _GREY_16_MODES
            is_16_bit = grey_16 or (self.name == "PNG" and ";16" in stored)
            is_grey = grey_16 or image.mode in _GREY_MODES or "LA;16" in stored
            if ";16" in stored and not is_16_bit:
                notes += ("16 bits a channel became 8: this kind of picture is read in no other way",)
            if frames > 1 and image.format != "MPO":
                notes += (f"only the first of {frames} frames was read",)
            has_alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
            if is_late and not has_too_many_pixels(*image.size):
                image.load()
            orientation, more = _orientation(image)
        width_px, height_px = image.size if orientation < 5 else image.size[::-1]
        return PictureHeader(
            path=path,
            format=self.name,
            width_px=width_px,
            height_px=height_px,
            bits=16 if is_16_bit else 8,
            channels=1 if is_grey else 3,
            has_alpha=has_alpha,
            orientation=orientation,
            decoder_bytes=self.decoder_bytes,
            notes=(*notes, *more),
        )

    def decoded_by_pillow(self, header: PictureHeader, tail: bytes = b"") -> LoadedImage:
        """tail: what to read behind the end of the file. The header's details: see `PictureFile.patches`."""
        notes = header.notes
        with PictureFile(header.path, header.details, tail) as file:
            with opened(file, header.format) as image:
                check_mode(header.path, image)
                _scale_transparent_level(image)
                # 16-bit grey is Pillow's own; in colour, or with transparency, it would lose half of the bits.
                by_vips = header.bits == 16 and (image.mode not in _GREY_16_MODES or header.has_alpha)
                size, is_inks = image.size, image.mode == "CMYK"
                image.load()
                metadata = _metadata(image, turned=header.orientation >= 5, is_inks=is_inks)
                if not by_vips:
                    pixels, alpha, more = arrays_from_image(image, header.has_alpha)
                    notes += more
            if by_vips:
                # Pillow's copy of the pixels goes.
                del image
                samples = Samples(size, header.channels, 16, header.channels if header.has_alpha else None)
                pixels, alpha = read_samples(file, samples)
        return LoadedImage(pixels, alpha, metadata, notes)


@contextmanager
def opened(file: PictureFile, name: str) -> Iterator[Image.Image]:
    """Open a file of a format by Pillow; nothing is decoded yet.

    By its own reader: Image.open would apply its limit of pixels to what has been written here, too.
    """
    Image.init()
    factory, _ = Image.OPEN[name.upper()]
    file.seek(0)
    with factory(file, "") as image:
        yield image


def has_too_many_pixels(width_px: int, height_px: int) -> bool:
    """Tell whether a picture is above Pillow's limit for files of strangers."""
    return Image.MAX_IMAGE_PIXELS is not None and width_px * height_px > 2 * Image.MAX_IMAGE_PIXELS


def check_mode(path: Path, image: Image.Image) -> None:
    """Raises ImageError for pixels that have no meaning as grey or colour."""
    if image.mode not in _GREY_MODES + _GREY_16_MODES + _COLOUR_MODES:
        expected = "grey or colour of 8 or 16 bits"
        raise ImageError(path, f"pixel format {image.mode}", expected, "convert it")


def stored_modes(image: Image.Image) -> str:
    """Return Pillow's names of what the file holds. Call it before load()."""
    return " ".join(str(tile[3]) for tile in image.tile)


def _scale_transparent_level(image: Image.Image) -> None:
    """Scale the transparent level of a PNG in grey of few bits as its pixels will be. Call it before load().

    Pillow stretches 2 and 4 bits to 8, but not what is said of them. Source: PNG Specification, Third Edition,
    11.3.1.1: only the low bits count.
    """
    level, stored = image.info.get("transparency"), stored_modes(image)
    if image.format == "PNG" and isinstance(level, int) and stored in _GREY_LEVELS:
        most = _GREY_LEVELS[stored]
        image.info["transparency"] = (level & most) * 255 // most


def arrays_from_image(
    image: Image.Image, has_alpha: bool, peak: int = PEAK_16
) -> tuple[Array, Array | None, tuple[str, ...]]:
    """Turn a decoded image into (H, W, 3) or (H, W), uint8 or uint16; the alpha (H, W); and notes.

    image: of a mode that `check_mode` takes. Of a palette, the colours. peak: white in a mode of 16 bits; it becomes
    65535.
    """
    to_rows, notes = _rows_from_mode(image, has_alpha, peak)
    first = to_rows(image.crop((0, 0, image.width, 1)))
    channels = first.shape[2] - has_alpha
    shape = (image.height, image.width)
    pixels = np.empty(shape if channels == 1 else (*shape, channels), first.dtype)
    alpha = np.empty(shape, first.dtype) if has_alpha else None
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        rows = to_rows(image.crop((0, top, image.width, bottom)))
        pixels[top:bottom] = rows[..., 0] if channels == 1 else rows[..., :channels]
        if alpha is not None:
            alpha[top:bottom] = rows[..., -1]
    return pixels, alpha, notes


def _rows_from_mode(
    image: Image.Image, has_alpha: bool, peak: int
) -> tuple[Callable[[Image.Image], Array], tuple[str, ...]]:
    """Return a function from rows as an image to (h, W, C), and notes."""
    if image.mode in _GREY_16_MODES:
        return lambda rows: _full_scale(np.asarray(rows)[..., None], peak), ()
    if image.mode == "CMYK" and not has_alpha:
        convert, note = rgb_from_cmyk(image.info.get("icc_profile") or b"")
        return lambda rows: np.asarray(convert(rows)), (note,)
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    mode += "A" * has_alpha
    return lambda rows: np.atleast_3d(np.asarray(rows.convert(mode))), ()


def _full_scale(values: Array, peak: int) -> Array:
    """[0, peak] -> uint16 in [0, 65535], to the nearest."""
    scaled = values if peak == PEAK_16 else (values.astype(np.uint32) * PEAK_16 + peak // 2) // peak
    return scaled.astype(np.uint16)


def rgb_from_cmyk(profile: bytes) -> tuple[Callable[[Image.Image], Image.Image], str]:
    """Return a function from inks to light, and a note that says how it does it."""
    why = "its ICC profile is broken" if profile else "it has no ICC profile"
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    # Where Pillow was built without it, ImageCms is there, and nothing in it works.
    except (ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return lambda rows: rows.convert("RGB"), f"CMYK became RGB by rule of thumb: {why}"
    return lambda rows: ImageCms.applyTransform(rows, transform) or rows, "CMYK became sRGB by its ICC profile"


def _orientation(image: Image.Image) -> tuple[int, tuple[str, ...]]:
    """Return EXIF's orientation, 1 to 8, and a note where that cannot be told. Nothing is decoded."""
    _adopt_raw_profiles(image)
    try:
        # For a PNG, Pillow's own method decodes the whole picture: what it looks for may lie behind the pixels.
        return orientation_from_tags(Image.Image.getexif(image)), ()
    except Exception as error:  # Pillow raises many kinds on broken EXIF.
        return 1, (f"EXIF is broken, so the picture may lie on its side ({error})",)


def orientation_from_tags(tags: Mapping[int, Any]) -> int:
    """Return EXIF's orientation, 1 to 8; 1 where there is none."""
    value = tags.get(ORIENTATION, 1)
    # Some write it twice, or as a byte.
    value = value[0] if isinstance(value, tuple | bytes) and value else value
    return value if value in range(1, 9) else 1


def _metadata(image: Image.Image, turned: bool, is_inks: bool) -> ImageMetadata:
    """Return what a decoded image carries. turned: rows of the file become columns. is_inks: its profile goes."""
    _adopt_raw_profiles(image)
    info = image.info
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp", b""))
    iptc = [body for name, body in getattr(image, "applist", ()) if name == "APP13" and body.startswith(_PHOTOSHOP)]
    others = ["comment"] if "comment" in info else []
    # IPTC in several parts is rare, and what is in which of them nobody says.
    others += ["IPTC"] if len(iptc) > 1 else []
    others += _others_of_png(image) if image.format == "PNG" else []
    return ImageMetadata(
        bytes_or_nothing(info.get("exif")),
        b"" if is_inks else bytes_or_nothing(info.get("icc_profile")),
        bytes_or_nothing(xmp.encode() if isinstance(xmp, str) else xmp),
        iptc[0] if len(iptc) == 1 else b"",
        dpi_of_upright(info.get("dpi"), turned),
        tuple(others),
    )


def bytes_or_nothing(value: Any) -> bytes:
    """Return what is bytes, and none of them for anything else."""
    return value if isinstance(value, bytes) else b""


def dpi_of_upright(dpi: Any, turned: bool) -> tuple[float, float] | None:
    """Return a pair of positive numbers, swapped where rows become columns; None for anything else."""
    try:
        x, y = (float(side) for side in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not (math.isfinite(x) and math.isfinite(y) and 0 < x < _MOST_DPI and 0 < y < _MOST_DPI):
        return None
    return (y, x) if turned else (x, y)


def _others_of_png(image: Image.Image) -> list[str]:
    texts = getattr(image, "text", {})
    named = [name for name in texts if name not in _USUAL_TEXTS and not name.startswith("Raw profile type")]
    gamma = image.info.get("gamma", _SRGB_GAMMA)
    unusual = abs(gamma - _SRGB_GAMMA) > _GAMMA_TOLERANCE and not image.info.get("icc_profile")
    return ["text"] * bool(named) + ["gamma"] * unusual


def _adopt_raw_profiles(image: Image.Image) -> None:
    """Have EXIF and XMP that stand as text in a PNG where Pillow looks for them.

    Source: ImageMagick's and exiftool's `Raw profile type`: three lines, then numbers of two digits.
    """
    for key in (_PNG_EXIF, _PNG_XMP, _PNG_APP1):
        with suppress(ValueError):
            found = bytes.fromhex("".join(str(image.info.get(key, "")).split("\n")[3:]))
            if not found:
                continue
            if key == _PNG_XMP or found.startswith(_JPEG_XMP_HEADER):
                image.info.setdefault("xmp", found.removeprefix(_JPEG_XMP_HEADER))
            elif key == _PNG_EXIF or found.startswith(EXIF_HEADER):
                image.info.setdefault("exif", found)


def save_by_pillow(image: Any, path: Path, name: str, **settings: Any) -> None:
    """Save a libvips image by what libvips has no encoder like. Settings that are empty are left out."""
    pixels = np.frombuffer(image.write_to_memory(), np.uint8).reshape(image.height, image.width, image.bands)
    whole = Image.fromarray(pixels[..., 0] if image.bands == 1 else pixels)
    whole.save(path, format=name, **{key: value for key, value in settings.items() if value})
