"""Pictures of formats that are not read, by their beginnings and their names: for errors that help."""

from __future__ import annotations

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
_RAW_SUFFIXES = (".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
# Pictures to everyone, by their names: never the name of a folder.
UNREAD_SUFFIXES = (
    *(".gif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm", ".exr", ".psd", ".svg"),
    *_RAW_SUFFIXES,
)


def other_kind(head: bytes) -> str:
    """Tell what a file is by its first bytes, with an article, as in `a GIF`; empty where that is not known."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "a HEIC"
    if head[4:8] == b"ftyp" and head[8:12] == _CANON_RAW:
        return "a camera raw"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), "")
