"""Pictures in folders and behind patterns; what cannot be looked into is told, not passed over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import dropwhile
from pathlib import Path

from intsr.runtime.films.names import FILM_SUFFIXES
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES, UNREAD_SUFFIXES

_GLOB_CHARACTERS = frozenset("*?[")
# Of a path below something that is no folder; a link to itself is none.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_folder(path: Path) -> bool:
    # Never raises, as pathlib's does: what cannot be looked at is tried as a file, which says why it cannot.
    return os.path.isdir(path)  # noqa: PTH112


def has_wildcard(text: str) -> bool:
    return bool(_GLOB_CHARACTERS & set(text))


def place_of(path: Path) -> str:
    """Return one text for one file, there or not. Unlike Path.resolve(), a link to itself is no error."""
    # Windows sees one file in a.png and A.png.
    return os.path.normcase(os.path.realpath(path))


@dataclass(frozen=True, slots=True)
class Search:
    """Finds pictures, and notes what it had to pass over."""

    # The `place_of` of a folder that is not looked into, or "".
    skipped: str
    # Folders that cannot be listed, and why: pathlib and glob pass over those in silence.
    unreadable: dict[Path, str] = field(default_factory=dict)
    # Pictures of formats that are not read.
    other: set[Path] = field(default_factory=set)
    # Whether films match as well: they take hours, so a folder alone does not mean them; and those passed over.
    takes_films: bool = False
    films: set[Path] = field(default_factory=set)

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield what shells make of a pattern, for those that leave it to the program. Only pictures match."""
        if not parts:
            yield from [folder] if self._is_picture(folder) else []
        elif self.skipped and place_of(folder) == self.skipped:
            return
        elif parts[0] == "**":
            rest = list(dropwhile(lambda part: part == "**", parts)) or ["*"]
            for below in self._folders(folder):
                yield from self.matches(below, rest)
        elif has_wildcard(parts[0]):
            _, folders, files = next(self._walk(folder), ("", [], []))
            for name in folders + files:
                if fnmatch(name, parts[0]) and (parts[0].startswith(".") or not name.startswith(".")):
                    yield from self.matches(folder / name, parts[1:])
        else:
            yield from self.matches(folder / parts[0], parts[1:])

    def _is_picture(self, path: Path) -> bool:
        # A link that leads nowhere is no folder: it is reported, not passed over.
        if path.suffix.lower() in UNREAD_SUFFIXES and not path.name.startswith(".") and not is_folder(path):
            self.other.add(path)
        is_film = path.suffix.lower() in FILM_SUFFIXES
        if is_film and not self.takes_films and not path.name.startswith(".") and not is_folder(path):
            self.films.add(path)
        if not (path.suffix.lower() in PICTURE_SUFFIXES or (is_film and self.takes_films)) or is_folder(path):
            return False
        try:
            path.lstat()
        except OSError as error:
            # There for all that is known; reading it says what is wrong.
            return error.errno not in _ABSENT
        return not self.skipped or Path(self.skipped) not in Path(place_of(path)).parents

    def _folders(self, top: Path) -> Iterator[Path]:
        """Yield the folder and all below, but no hidden ones, and none behind links: those may lead in circles."""
        for folder, names, _ in self._walk(top):
            yield Path(folder)
            inner = [name for name in names if not name.startswith(".")]
            names[:] = [name for name in inner if not self.skipped or place_of(Path(folder, name)) != self.skipped]

    def _walk(self, top: Path) -> Iterator[tuple[str | Path, list[str], list[str]]]:
        def note(error: OSError) -> None:
            if error.errno not in _ABSENT:
                self.unreadable[Path(error.filename or top)] = error.strerror or str(error)

        return os.walk(top, onerror=note)


def once(found: Iterable[Path]) -> list[Path]:
    """Keep one way to each picture: the one without links to folders, else the shortest."""
    ways = [(os.path.realpath(path.parent), path) for path in found]
    ways.sort(key=lambda way: (way[0] != os.path.abspath(way[1].parent), len(way[1].parts), way[1]))  # noqa: PTH100
    kept: dict[tuple[str, str], Path] = {}
    for folder, path in ways:
        kept.setdefault((folder, path.name), path)
    return list(kept.values())
