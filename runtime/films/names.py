"""What is a film by its name, and which container a name stands for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from intsr.errors import UsageError

# Suffix of an output -> FFmpeg's name of the container.
CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "mpegts"),
}
# Read, and written as .mkv where no name says otherwise. AVI has no place for the times of frames.
_ONLY_READ = (
    *(".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2"),
    *(".mxf", ".y4m", ".nut", ".divx", ".rm"),
)
FILM_SUFFIXES = (*CONTAINERS, *_ONLY_READ)
_OTHER_CONTAINER = ".mkv"
# printf's way to say where the number of a frame stands, as FFmpeg takes it.
_NUMBER = re.compile(r"%(?:0([1-9]))?d")


def is_film(path: Path) -> bool:
    """Tell by the name; a sequence of pictures is a film, too."""
    return path.suffix.lower() in FILM_SUFFIXES or is_sequence(path)


def is_sequence(path: Path) -> bool:
    """Tell whether it names numbered pictures, as `frames/%06d.png` does, and no file is really called so."""
    is_numbered = _NUMBER.search(path.name) is not None and path.suffix.lower() not in FILM_SUFFIXES
    return is_numbered and not os.path.exists(path)  # noqa: PTH110


def film_suffix(source: Path) -> str:
    """Return the suffix of the output for a film whose name says nothing else."""
    return source.suffix if source.suffix.lower() in CONTAINERS else _OTHER_CONTAINER


def container_from_path(path: Path) -> str:
    """Return FFmpeg's name of the container that is written here. Raises UsageError."""
    found = CONTAINERS.get(path.suffix.lower())
    if found is None:
        raise UsageError(path, f"suffix {path.suffix or '(none)'}", f"one of {' '.join(CONTAINERS)}")
    return found


def numbered(path: Path, number: int) -> Path:
    """Return the name of one picture of a sequence."""
    return path.with_name(_NUMBER.sub(lambda found: f"{number:0{found[1] or 1}d}", path.name, count=1))


def numbered_pictures(path: Path) -> dict[int, Path]:
    """Return the pictures of a sequence by number, in order. Raises UsageError where the folder cannot be listed."""
    found = _NUMBER.search(path.name)
    assert found is not None
    before, after = re.escape(path.name[: found.start()]), re.escape(path.name[found.end() :])
    digits = rf"\d{{{found[1]},}}" if found[1] else r"\d+"
    pattern = re.compile(f"{before}({digits}){after}", re.ASCII)
    try:
        matches = [(pattern.fullmatch(item.name), item) for item in path.parent.iterdir()]
    except OSError as error:
        raise UsageError(path, f"the folder cannot be read ({error.strerror})") from error
    return dict(sorted((int(match[1]), item) for match, item in matches if match))
