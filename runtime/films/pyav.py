"""The one place that imports PyAV, and how its errors are told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intsr.errors import ImageError, printable
from intsr.optional import require

# swscale's flags for exact colours: bicubic, full chroma, exact rounding.
INTERPOLATION = 0x4 | 0x2000 | 0x4000 | 0x40000


def load_pyav() -> Any:
    """Return the module `av`, silenced. Raises MissingLibraryError."""
    # SVT-AV1 has its own log, on stderr.
    os.environ.setdefault("SVT_LOG", "1")
    av = require("av", "films")
    # What it has to say comes as exceptions.
    require("av.logging", "films").set_level(None)
    return av


@contextmanager
def broken_film_as_image_error(path: Path) -> Iterator[None]:
    """Turn what PyAV raises for files that are no film, or no whole one, into ImageError."""
    av = load_pyav()
    try:
        yield
    except av.FFmpegError as error:
        text = error.strerror or str(error)
        raise ImageError(path, printable(f"cannot be read as a film ({text})"), "a film that FFmpeg reads") from error


def library_versions() -> str:
    """Return the versions of what encodes; another one may write other headers."""
    av = load_pyav()
    return f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"


def open_input(path: Path) -> Any:
    """Open a film for reading. Raises PyAV's errors."""
    # Without a protocol before it, a name with a colon would be taken for an address.
    return load_pyav().open(f"file:{path}", metadata_errors="replace")


def film_stream(container: Any) -> Any:
    """Return the stream that players show, which is no cover picture; None without one."""
    pictures = load_pyav().stream.Disposition.attached_pic
    films = [stream for stream in container.streams.video if not stream.disposition & pictures]
    return next((stream for stream in films if stream.disposition & 1), films[0] if films else None)
