"""Which pictures become which files: folders mirrored, collisions refused, all before the first one is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from intsr.errors import UsageError
from intsr.files import check_writable_place

# The suffixes that a folder is searched for; a file that is named itself is tried whatever it is called.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pictures to everyone, which this version cannot write: never the name of a folder.
UNWRITABLE_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ppm", ".pgm", ".exr", ".psd", ".svg")
SAME_FORMAT = "same"
OUTPUT_FORMATS = (SAME_FORMAT, "png", "jpg", "webp", "tif", "bmp")


@dataclass(frozen=True, slots=True)
class Naming:
    """How an output inside a folder is called: stem, name_suffix, and the suffix of `output_format`."""

    name_suffix: str = ""
    output_format: str = SAME_FORMAT

    def name(self, source: Path) -> str:
        same = source.suffix if source.suffix.lower() in PICTURE_SUFFIXES else ".png"
        suffix = same if self.output_format == SAME_FORMAT else f".{self.output_format}"
        return f"{source.stem}{self.name_suffix}{suffix}"


@dataclass(frozen=True, slots=True)
class Job:
    """One picture: read `source`, write `output`."""

    source: Path
    output: Path


def plan_jobs(inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming) -> list[Job]:
    """Files and folders -> jobs, in a stable order.

    `output` is a file where there is one input, a file, and `output` has a picture's suffix; else a folder, in which
    the tree of each input folder is repeated. Raises UsageError: nothing to do, two pictures for one output, an
    output that is an input.
    """
    if output.suffix.lower() in UNWRITABLE_SUFFIXES and not output.is_dir():
        raise UsageError("-o", f"{output}", f"a folder, or a name with {' '.join(PICTURE_SUFFIXES)}")
    is_file = output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir()
    if is_file and len(inputs) == 1 and not inputs[0].is_dir():
        jobs = [Job(inputs[0], output)]
    elif is_file:
        raise UsageError("-o", f"{output} is a file", "a folder for several pictures", "give -o a folder")
    else:
        jobs = list(_folder_jobs(inputs, output, recursive, naming))
    if not jobs:
        where = ", ".join(map(str, inputs))
        raise UsageError(where, "no pictures", f"files with {' '.join(PICTURE_SUFFIXES)}", "-r looks into subfolders")
    _check_collisions(jobs)
    return jobs


def _folder_jobs(inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming) -> Iterator[Job]:
    for item in inputs:
        if not item.is_dir():
            yield Job(item, output / naming.name(item))
            continue
        # Outputs of an earlier call are no inputs.
        skipped = output.resolve() if output.resolve() != item.resolve() else None
        for source in sorted(item.rglob("*") if recursive else item.glob("*")):
            hidden = any(part.startswith(".") for part in source.relative_to(item).parts)
            if hidden or source.suffix.lower() not in PICTURE_SUFFIXES or not source.is_file():
                continue
            if skipped is None or skipped not in source.resolve().parents:
                yield Job(source, output / source.relative_to(item).with_name(naming.name(source)))


def _check_collisions(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[str, Path] = {}
    for job in jobs:
        # Windows sees one file in a.png and A.png.
        key = os.path.normcase(str(job.output.resolve()))
        if key in taken:
            got = f"{taken[key]} and {job.source} would both be written here"
            raise UsageError(job.output, got, fix="rename one, or choose another --format")
        taken[key] = job.source
        if job.output.resolve() in sources:
            raise UsageError(job.output, "is itself an input", fix="choose another -o or a --suffix")


def check_outputs(jobs: Sequence[Job], skip_existing: bool, overwrite: bool) -> None:
    """Raises UsageError where outputs exist and neither option says what to do, or where writing is impossible."""
    existing = [job.output for job in jobs if job.output.exists()]
    if existing and not (skip_existing or overwrite):
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(existing[0], f"already exists{more}", fix="give --skip-existing or --overwrite")
    for folder in {job.output.parent for job in jobs}:
        # Nothing is created for a batch that then fails.
        check_writable_place(folder)
