"""What can be written: the formats, and what each of them can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.runtime.pictures.formats.jpeg import JPEG_SEGMENT_BYTES, names_of_segments
from intsr.runtime.pictures.formats.png import (
    CODE_POINTS,
    chunks_beside_profile,
    density_of_chunks,
    names_of_text,
    text_from_code_points,
    unusual_chunks,
    usual_density,
)
from intsr.runtime.pictures.metadata.fields import EXIF_HEADER, JPEG_XMP_HEADER, ImageMetadata, exif_directory
from intsr.runtime.pictures.metadata.resolution import text_from_density

if TYPE_CHECKING:
    from intsr.runtime.pictures.reader import ImageInfo

# Grey becomes colour in them.
_WITHOUT_GREY = ("WEBP", "AVIF")
_WITH_DENSITY = ("JPEG", "TIFF", "BMP")
# Of EXIF.
_RESOLUTION = 0x011A


@dataclass(frozen=True, slots=True)
class WriteFormat:
    """pillow: its name there. alpha, depth_16: whether it holds them. max_side_px: what its header can say.
    max_bytes: of the pixels. default_quality: None where it is lossless. held_bytes: for each output pixel, what the
    writer takes of memory until the whole picture is there; 0 where it streams. held_alpha_bytes: so many more where
    the picture is transparent.
    """

    pillow: str
    alpha: bool
    depth_16: bool
    max_side_px: int
    default_quality: int | None = None
    max_bytes: int | None = None
    held_bytes: int = 0
    held_alpha_bytes: int = 0


_JPEG = WriteFormat("JPEG", False, False, 65500, 95)
_TIFF = WriteFormat("TIFF", True, True, 2**31 - 1)
# PNG: libpng, which most programs read it with, refuses longer sides. AVIF, WebP: what their own readers take.
WRITE_FORMATS = {
    ".png": WriteFormat("PNG", True, True, 1_000_000),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": WriteFormat("WEBP", True, False, 16383, 95, held_bytes=15, held_alpha_bytes=30),
    ".avif": WriteFormat("AVIF", True, False, 16384, 90, held_bytes=48),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": WriteFormat("BMP", False, False, 2**31 - 1, max_bytes=2**32 - 2**16, held_bytes=8),
}


def format_from_path(path: Path) -> WriteFormat:
    """By the suffix, in any case. Raises ImageError."""
    found = WRITE_FORMATS.get(path.suffix.lower())
    if found is None:
        raise ImageError(path, f"suffix {path.suffix or '(none)'}", f"one of {', '.join(WRITE_FORMATS)}")
    return found


def check_format_fits(info: ImageInfo, width_px: int, height_px: int, output: Path) -> None:
    """Before anything is decoded: can the format of `output` hold the picture, enlarged to these sides?

    Transparency is not asked for here: only the decoded picture tells (`check_alpha_fits`). Raises ImageError.
    """
    check_pixels_fit(width_px, height_px, info.channels, info.bits, output)


def check_pixels_fit(width_px: int, height_px: int, channels: int, bits: int, output: Path) -> None:
    """channels: 1 or 3, and one more for transparency. bits: 8 or 16. Raises ImageError."""
    target = format_from_path(output)
    got, fix = f"the picture would be {width_px}x{height_px}", "write a .png"
    if max(width_px, height_px) > target.max_side_px:
        other = ".png" if max(width_px, height_px) <= WRITE_FORMATS[".png"].max_side_px else ".tif"
        raise ImageError(output, got, f"sides up to {target.max_side_px} in {target.pillow}", f"write a {other}")
    if bits == 16 and not target.depth_16:
        kind = "grey" if channels < 3 else "colour"
        raise ImageError(output, f"16-bit {kind}", f"8 bits in {target.pillow}", "write a .png or .tif")
    if target.max_bytes is not None and width_px * height_px * channels > target.max_bytes:
        raise ImageError(output, got, f"up to {target.max_bytes} bytes in {target.pillow}", fix)


def check_alpha_fits(alpha: Array | None, output: Path) -> None:
    """Raises ImageError where the picture is transparent and the format of `output` cannot say so."""
    target = format_from_path(output)
    if alpha is not None and not target.alpha:
        raise ImageError(output, "the picture is transparent", f"an opaque one in {target.pillow}", "write a .png")


def profile_fits(icc_profile: bytes, target: WriteFormat) -> bool:
    """Whether a profile is of the colours that the format holds. Source: ICC.1:2022, 7.2.6."""
    return target.pillow not in _WITHOUT_GREY or icc_profile[16:20] != b"GRAY"


def notes_for_output(metadata: ImageMetadata, output: Path) -> tuple[str, ...]:
    """What of the metadata the format of `output` cannot hold, for people."""
    target, notes = format_from_path(output), list(exif_directory(metadata.exif)[1])
    if target.pillow == "BMP" and (metadata.exif or metadata.xmp or metadata.icc_profile):
        notes.append("EXIF, XMP and ICC were dropped: BMP holds none of them")
    if not profile_fits(metadata.icc_profile, target):
        notes.append(f"ICC was dropped: it is a profile of grey, which becomes colour in {target.pillow}")
    notes += _notes_of_chunks(metadata, target)
    if target.pillow != "JPEG":
        if metadata.jpeg_segments:
            names = ", ".join(names_of_segments(metadata.jpeg_segments))
            notes.append(f"{names} of the JPEG dropped: {target.pillow} has no place for it")
        return tuple(notes)
    bodies = {"EXIF": (EXIF_HEADER, metadata.exif), "XMP": (JPEG_XMP_HEADER, metadata.xmp)}
    for name, (header, data) in bodies.items():
        if len(header + data.removeprefix(header)) > JPEG_SEGMENT_BYTES:
            notes.append(f"{name} was dropped: JPEG holds up to {JPEG_SEGMENT_BYTES} bytes of it")
    return tuple(notes)


def _notes_of_chunks(metadata: ImageMetadata, target: WriteFormat) -> list[str]:
    """What of PNG's chunks, or of what they say, a format cannot hold."""
    if target.pillow == "PNG":
        return []
    notes, found = [], unusual_chunks(chunks_beside_profile(metadata.png_chunks, metadata.icc_profile))
    names = [name.decode() for name, _ in found if name != CODE_POINTS]
    if names:
        notes.append(f"{', '.join(names)} of the PNG dropped: {target.pillow} has no such thing")
    for name, body in found:
        if name == CODE_POINTS:
            colours = text_from_code_points(body)
            notes.append(f"colours of {colours} will be taken for sRGB: {target.pillow} cannot say so; write a .png")
    density = density_of_chunks(metadata.png_chunks)
    said = target.pillow in _WITH_DENSITY or _RESOLUTION in exif_directory(metadata.exif)[0]
    if density and not said and not usual_density(density):
        notes.append(f"{text_from_density(density)} dropped: {target.pillow} has no place for it")
    if texts := names_of_text(metadata.png_chunks):
        notes.append(f"text of the PNG dropped ({texts}): {target.pillow} has no such thing")
    return notes
