"""What each format keeps in ways of its own beside EXIF, XMP and ICC: density, text, comments, meaning of colours."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from intsr.runtime.pictures.formats.avif import avif_has_gain_map, code_points_from_avif
from intsr.runtime.pictures.formats.jpeg import JpegSegments, has_gain_map, segments_from_jpeg
from intsr.runtime.pictures.formats.png import CODE_POINTS, DENSITY, chunks_from_png
from intsr.runtime.pictures.metadata.fields import PngChunks
from intsr.runtime.pictures.metadata.resolution import density_from_bmp, density_from_jfif, turned_density
from intsr.runtime.pictures.metadata.xmp import GAIN_MAP_NOTE

_JPEGS = ("JPEG", "MPO")


def beside_from_image(
    path: Path, image: Image.Image, turned: bool
) -> tuple[PngChunks, JpegSegments, tuple[str, ...]]:
    """Of a decoded image, in PNG's terms where they have such; segments of a JPEG; notes. path: its file.

    turned: whether rows will be columns. Raises OSError.
    """
    if image.format == "PNG":
        chunks, notes = chunks_from_png(path, turned)
        return chunks, (), notes
    if image.format == "AVIF":
        notes = (GAIN_MAP_NOTE,) if avif_has_gain_map(path) else ()
        # A profile says more.
        colours = b"" if image.info.get("icc_profile") else code_points_from_avif(path)
        return ((CODE_POINTS, colours),) if colours else (), (), notes
    density, notes = b"", ()
    segments: JpegSegments = ()
    if image.format in _JPEGS:
        found = getattr(image, "applist", [])
        density = density_from_jfif(image.info.get("jfif_unit", 0), *image.info.get("jfif_density", (0, 0)))
        segments, notes = segments_from_jpeg(found), (GAIN_MAP_NOTE,) if has_gain_map(found) else ()
    elif image.format == "BMP":
        density = density_from_bmp(image.info.get("dpi"))
    return chunks_from_density(density, turned), segments, notes


def chunks_from_density(density: bytes, turned: bool) -> PngChunks:
    """density: the body of the chunk; empty for none. turned: as above."""
    if not density:
        return ()
    return ((DENSITY, turned_density(density) if turned else density),)
