"""All formats of this folder, found by listing it: a new one is one more file. And names of those not read."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from intsr.errors import ImageError
from intsr.runtime.pictures import formats
from intsr.runtime.pictures.picture import PictureFormat

# What a format is recognised by.
HEAD_BYTES = 32


def _found() -> tuple[PictureFormat, ...]:
    names = (f"{formats.__name__}.{module.name}" for module in pkgutil.iter_modules(formats.__path__))
    found = (getattr(import_module(name), "FORMAT", None) for name in names)
    return tuple(sorted((item for item in found if item is not None), key=lambda item: (item.place, item.name)))


FORMATS = _found()
*_FIRST, _LAST = (item.name for item in FORMATS)
EXPECTED = f"a {', '.join(_FIRST)} or {_LAST} picture"
# Suffixes that a folder is searched for; a file that is named itself is tried whatever it is called.
PICTURE_SUFFIXES = tuple(suffix for item in FORMATS for suffix in item.suffixes)
# Pictures to everyone, by their names: never the name of a folder. The second line is camera raw.
UNREAD_SUFFIXES = (
    *(".gif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm", ".exr", ".psd", ".svg"),
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_UNREAD = {
    "a GIF": (b"GIF87a", b"GIF89a"),
    "a Photoshop": (b"8BPS",),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "an ICO": (b"\0\0\1\0",),
    "a PDF": (b"%PDF-",),
    "an OpenEXR": (b"\x76\x2f\x31\x01",),
    "a Radiance HDR": (b"#?RADIANCE",),
    "a QOI": (b"qoif",),
    "an SVG": (b"<svg",),
    "a GIMP": (b"gimp xcf ",),
    "a camera raw": (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"FUJIFILMCCD-RAW"),
}


def other_kind(head: bytes) -> str:
    """Tell what a file that is not read is, with an article, as in `a GIF`; empty where that is not known."""
    if head[4:8] == b"ftyp" and head[8:12] in (*_HEIC, b"crx "):
        return "a HEIC" if head[8:12] in _HEIC else "a camera raw"
    return next((name for name, starts in _UNREAD.items() if head.startswith(starts)), "")


def format_from_path(path: Path) -> PictureFormat:
    """Find the format by the suffix, in any case. Raises ImageError."""
    suffix = path.suffix.lower()
    found = next((item for item in FORMATS if suffix in item.suffixes), None)
    if found is None:
        raise ImageError(path, f"suffix {path.suffix or '(none)'}", f"one of {', '.join(PICTURE_SUFFIXES)}")
    return found
