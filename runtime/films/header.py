"""A film's header in the words of pictures: what a frame of it takes."""

from __future__ import annotations

from pathlib import Path

from intsr.runtime.films.names import is_sequence
from intsr.runtime.films.read import FilmReader
from intsr.runtime.films.sequence import SequenceReader
from intsr.runtime.films.types import FilmOptions
from intsr.runtime.pictures.picture import PictureHeader


def open_source(path: Path, options: FilmOptions) -> FilmReader | SequenceReader:
    """Open a film or numbered pictures. Raises ImageError, UsageError, MissingLibraryError."""
    return SequenceReader(path, options) if is_sequence(path) else FilmReader(path, options)


def film_header(path: Path) -> PictureHeader:
    """Read the header and the first frame. Raises as `open_source` does."""
    with open_source(path, FilmOptions()) as source:
        facts = source.facts
    return PictureHeader(
        path=path,
        format="film",
        width_px=facts.width_px,
        height_px=facts.height_px,
        bits=facts.bits,
        channels=3,
        has_alpha=False,
        details=facts,
    )
