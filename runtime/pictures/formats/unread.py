"""Files of pictures that are not read, by what they begin with: for errors that help."""

from __future__ import annotations

from pathlib import Path

_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {
    b"GIF87a": "a GIF",
    b"GIF89a": "a GIF",
    b"8BPS": "a Photoshop",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\1\0": "an ICO",
    b"%PDF-": "a PDF",
    b"\x76\x2f\x31\x01": "an OpenEXR",
    b"#?RADIANCE": "a Radiance HDR",
    b"qoif": "a QOI",
    b"<svg": "an SVG",
    b"gimp xcf ": "a GIMP",
    b"IIRO": "a camera raw",
    b"IIRS": "a camera raw",
    b"MMOR": "a camera raw",
    b"IIU\0": "a camera raw",
    b"FOVb": "a camera raw",
    b"\0MRM": "a camera raw",
    b"FUJIFILMCCD-RAW": "a camera raw",
}
_CANON_RAW = b"crx "
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD_BYTES = 32


def other_kind(path: Path) -> str:
    """With its article, `a GIF` for instance; empty where it is nothing known. Raises OSError."""
    head = _head(path)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "a HEIC"
    if head[4:8] == b"ftyp" and head[8:12] == _CANON_RAW:
        return "a camera raw"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), "")


def is_avif(path: Path) -> bool:
    """By the brand at its beginning. Raises OSError."""
    head = _head(path)
    return head[4:8] == b"ftyp" and head[8:12] in _AVIF


def is_tiff(path: Path) -> bool:
    """By its beginning. Raises OSError."""
    return _head(path).startswith(TIFF_STARTS)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
