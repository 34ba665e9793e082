"""Write pictures whole or not at all, with what their format can hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from intsr.errors import ImageError, OutOfMemoryError
from intsr.files import atomic_path
from intsr.runtime.image_io import ImageInfo
from intsr.runtime.image_metadata import ImageMetadata
from intsr.runtime.networks import Array

# Peak bytes for each output pixel, measured from 2 to 31 MP: 38 with wavelet, 26 with adain, 17 with none.
BYTES_PER_OUTPUT_PIXEL = 40
_XMP_TAG = 700


@dataclass(frozen=True, slots=True)
class WriteFormat:
    """pillow: its name there. max_side_px: what its header can say. settings: for Image.save."""

    pillow: str
    alpha: bool
    grey_16: bool
    max_side_px: int
    settings: dict[str, Any]


_JPEG = WriteFormat("JPEG", False, False, 65500, {"quality": 95, "subsampling": 0})
_TIFF = WriteFormat("TIFF", True, True, 2**31 - 1, {"compression": "tiff_adobe_deflate"})
WRITE_FORMATS = {
    ".png": WriteFormat("PNG", True, True, 2**31 - 1, {"compress_level": 4}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": WriteFormat("WEBP", True, False, 16383, {"quality": 95}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": WriteFormat("BMP", False, False, 2**31 - 1, {}),
}


def format_from_path(path: Path) -> WriteFormat:
    """By the suffix, in any case. Raises ImageError."""
    found = WRITE_FORMATS.get(path.suffix.lower())
    if found is None:
        raise ImageError(path, f"suffix {path.suffix or '(none)'}", f"one of {', '.join(WRITE_FORMATS)}")
    return found


def check_output_fits(info: ImageInfo, upscale_factor: int, output: Path) -> None:
    """Before anything is decoded: does the enlarged picture fit its format and the free memory?

    Raises ImageError, OutOfMemoryError.
    """
    width_px, height_px = info.width_px * upscale_factor, info.height_px * upscale_factor
    target = format_from_path(output)
    if max(width_px, height_px) > target.max_side_px:
        got = f"the picture would be {width_px}x{height_px}"
        raise ImageError(output, got, f"sides up to {target.max_side_px} in {target.pillow}", "write a .png")
    if info.mode.startswith("I;16") and not target.grey_16:
        raise ImageError(output, "16-bit grey", f"8 bits in {target.pillow}", "write a .png or .tif")
    needed, free = width_px * height_px * BYTES_PER_OUTPUT_PIXEL, available_bytes()
    if free is not None and needed > free:
        got = f"{width_px}x{height_px} pixels out need about {needed >> 20} MiB, {free >> 20} MiB are free"
        raise OutOfMemoryError(output, got, fix="cut the picture into parts first")


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def check_alpha_fits(alpha: Array | None, output: Path) -> None:
    """Raises ImageError where the picture is transparent and the format of `output` cannot say so."""
    target = format_from_path(output)
    if alpha is not None and not target.alpha:
        raise ImageError(output, "the picture is transparent", f"an opaque one in {target.pillow}", "write a .png")


def notes_for_output(metadata: ImageMetadata, output: Path) -> tuple[str, ...]:
    """What of the metadata the format of `output` cannot hold, for people."""
    if format_from_path(output).pillow != "BMP" or metadata == ImageMetadata():
        return ()
    return ("EXIF, XMP and ICC were dropped: BMP holds none of them",)


def enlarge_alpha(alpha: Array, upscale_factor: int) -> Array:
    """(H, W) uint8 -> (H f, W f) uint8, by Lanczos, apart from the colours; constant alpha stays what it is."""
    height_px, width_px = (side * upscale_factor for side in alpha.shape)
    if int(alpha.min()) == int(alpha.max()):
        return np.full((height_px, width_px), alpha.flat[0], np.uint8)
    return np.asarray(Image.fromarray(alpha).resize((width_px, height_px), Image.Resampling.LANCZOS))


def write_image(path: Path, pixels: Array, alpha: Array | None, metadata: ImageMetadata) -> None:
    """pixels: (H, W, 3) uint8, or (H, W) uint8 or uint16. alpha: (H, W) uint8. The written file is opened again.

    Raises ImageError; then `path` is as it was.
    """
    target = format_from_path(path)
    check_alpha_fits(alpha, path)
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, format=target.pillow, **target.settings, **_metadata_settings(target, metadata))
            _check_written(temporary, target, image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(path, f"cannot be written ({error})") from error


def _metadata_settings(target: WriteFormat, metadata: ImageMetadata) -> dict[str, Any]:
    """Arguments of Image.save for whatever there is; BMP holds none of it."""
    if target.pillow == "BMP":
        return {}
    settings: dict[str, Any] = {}
    if metadata.exif:
        settings["exif"] = metadata.exif
    if metadata.icc_profile:
        settings["icc_profile"] = metadata.icc_profile
    if metadata.xmp and target.pillow == "PNG":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        settings["pnginfo"] = chunks
    elif metadata.xmp and target.pillow == "TIFF":
        exif = Image.Exif()
        exif.load(metadata.exif)
        exif[_XMP_TAG] = metadata.xmp
        settings["exif"] = exif
    elif metadata.xmp:
        settings["xmp"] = metadata.xmp
    return settings


def _check_written(path: Path, target: WriteFormat, image: Image.Image) -> None:
    # The format's own reader: Image.open would apply the pixel limit, which is meant for strangers' files.
    factory, _ = Image.OPEN[target.pillow]
    with path.open("rb") as file, factory(file, str(path)) as written:
        if written.size != image.size:
            raise ValueError(f"the written file has {written.size} pixels, not {image.size}")
        written.verify()
