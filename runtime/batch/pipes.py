"""`-` in the place of a picture: it comes from stdin, or goes to stdout, by way of a temporary folder.

Readers and writers of pictures go back and forth in their files, which pipes do not allow.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from intsr.errors import UsageError
from intsr.runtime.batch.naming import SAME_FORMAT
from intsr.runtime.batch.search import has_wildcard, is_folder
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES

DASH = "-"


@dataclass(frozen=True, slots=True)
class Pipes:
    """What stands for what."""

    # As if nobody had written `-`.
    inputs: tuple[Path, ...]
    output: str
    # The files that stand for stdin and stdout; None where those are not asked for.
    source: Path | None = None
    target: Path | None = None

    def named(self, text: str) -> str:
        """Name stdin and stdout in a text for people, who know of no such files."""
        for path, name in ((self.source, "stdin"), (self.target, "stdout")):
            text = text if path is None else text.replace(str(path), name)
        return text

    def deliver(self) -> None:
        """Write the picture to stdout, once it is there. Raises OSError."""
        if self.target is not None and self.target.exists():
            with self.target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


@contextmanager
def open_pipes(inputs: Sequence[str], output: str, output_format: str, others: Mapping[str, bool]) -> Iterator[Pipes]:
    """Reads stdin to its end where an input is `-`. output_format: of stdout, PNG for `same`. others: options that
    cannot be together with a picture on stdout, and whether they are given. Raises UsageError.
    """
    paths = tuple(map(Path, inputs))
    if DASH not in (*inputs, output):
        yield Pipes(paths, output)
        return
    _check_one_picture(inputs, output)
    if output == DASH:
        if option := next((option for option, is_given in others.items() if is_given), None):
            raise UsageError(option, f"together with -o {DASH}", "one of them: stdout is the picture's alone")
        _check_no_terminal(sys.stdout, f"-o {DASH}", "a pipe or a file", "give -o a name, or add > FILE")
    with tempfile.TemporaryDirectory(prefix="intsr-pipe-") as folder:
        suffix = "png" if output_format == SAME_FORMAT else output_format
        source = Path(folder, "stdin") if inputs[0] == DASH else None
        target = Path(folder, f"stdout.{suffix}") if output == DASH else None
        if source is not None:
            _check_no_terminal(sys.stdin, DASH, "a picture through a pipe", "name a file, or add < FILE")
            with source.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        yield Pipes((source or paths[0],), str(target or output), source, target)


def _check_one_picture(inputs: Sequence[str], output: str) -> None:
    where = DASH if DASH in inputs else f"-o {DASH}"
    if len(inputs) != 1 or is_folder(Path(inputs[0])) or (has_wildcard(inputs[0]) and not Path(inputs[0]).exists()):
        raise UsageError(where, "together with several pictures", "one, by its name or as -", "give -o a folder")
    if output != DASH and (is_folder(Path(output)) or Path(output).suffix.lower() not in PICTURE_SUFFIXES):
        expected = f"a file with {' '.join(PICTURE_SUFFIXES)}, or -"
        raise UsageError("-o", f"{output}, while the picture from stdin has no name", expected)


def _check_no_terminal(stream: TextIO | None, where: str, expected: str, fix: str) -> None:
    # Nothing comes out of a stream that is closed, or arrives there.
    if stream is None or stream.isatty():
        raise UsageError(where, f"{'stdin' if where == DASH else 'stdout'} is a terminal", expected, fix)
