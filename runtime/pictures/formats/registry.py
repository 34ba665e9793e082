"""All formats of this folder, found by listing it: a new one is one more file."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from intsr.errors import ImageError
from intsr.runtime.pictures import formats
from intsr.runtime.pictures.formats.base import PictureFormat
from intsr.runtime.pictures.formats.unread import other_kind

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


def format_from_head(path: Path, head: bytes) -> PictureFormat:
    """Find the format of a file by its first `HEAD_BYTES` bytes. Raises ImageError."""
    found = next((item for item in FORMATS if item.recognizes(head)), None)
    if found is not None:
        return found
    if kind := other_kind(head):
        raise ImageError(path, f"{kind} file, which is not read", EXPECTED, "convert it to PNG or JPEG first")
    raise ImageError(path, "not a picture, whatever its name says", EXPECTED)


def format_from_name(name: str) -> PictureFormat:
    """Find the format of a header."""
    return next(item for item in FORMATS if item.name == name)


def format_from_path(path: Path) -> PictureFormat:
    """Find the format by the suffix, in any case. Raises ImageError."""
    suffix = path.suffix.lower()
    found = next((item for item in FORMATS if suffix in item.suffixes), None)
    if found is None:
        raise ImageError(path, f"suffix {path.suffix or '(none)'}", f"one of {', '.join(PICTURE_SUFFIXES)}")
    return found
