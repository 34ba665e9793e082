"""Which pictures become which files: folders mirrored, collisions refused, all before the first one is read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from string import Formatter

from intsr.errors import UsageError
from intsr.files import check_writable_place

# The suffixes that a folder is searched for; a file that is named itself is tried whatever it is called.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp")
# Pictures to everyone, which this version cannot write: never the name of a folder.
UNWRITABLE_SUFFIXES = (".gif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm", ".exr", ".psd", ".svg")
SAME_FORMAT = "same"
DEFAULT_TEMPLATE = "{stem}{ext}"
TEMPLATE_FIELDS = ("stem", "ext", "scale", "engine")
_GLOB_CHARACTERS = frozenset("*?[")
OUTPUT_FORMATS = (SAME_FORMAT, "png", "jpg", "webp", "avif", "tif", "bmp")


@dataclass(frozen=True, slots=True)
class Naming:
    """How an output inside a folder is called. template: see `TEMPLATE_FIELDS`. output_format: of `OUTPUT_FORMATS`.
    scale: how many times as large outputs are. engine: the engine's name, for the template.

    Raises UsageError for a template that is no file name.
    """

    template: str = DEFAULT_TEMPLATE
    output_format: str = SAME_FORMAT
    scale: float = 1.0
    engine: str = ""

    def __post_init__(self) -> None:
        # A trial: what is wrong with a template is wrong with it for every picture.
        self.name(Path("a.png"))

    def name(self, source: Path) -> str:
        """The output's name for an input."""
        same = source.suffix if source.suffix.lower() in PICTURE_SUFFIXES else ".png"
        suffix = same if self.output_format == SAME_FORMAT else f".{self.output_format}"
        values = {"stem": source.stem, "ext": suffix, "scale": f"{self.scale:g}", "engine": self.engine}
        name = "".join(text + values.get(field or "", "") for text, field in _template_parts(self.template))
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", "..", suffix):
            raise UsageError("--name", f"{self.template!r} gives {name!r}", "a file name, no folder")
        if Path(name).suffix.lower() not in PICTURE_SUFFIXES:
            got = f"{self.template!r} gives {name!r}"
            raise UsageError("--name", got, "a name that ends in a picture's suffix", "end it with {ext}")
        return name


def _template_parts(template: str) -> list[tuple[str, str | None]]:
    """Text and the field behind it. Raises UsageError for anything but plain known fields."""
    fields = " ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError("--name", f"{template!r} ({error})", f"text with {fields}") from error
    for _, field, specification, conversion in parts:
        if specification or conversion or (field is not None and field not in TEMPLATE_FIELDS):
            raise UsageError("--name", f"{{{field}}} in {template!r}", f"only {fields}")
    return [(text, field) for text, field, _, _ in parts]


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count` parts of a batch, from 1: several machines or processes share the work."""

    index: int = 1
    count: int = 1

    def part(self, jobs: Sequence[Job]) -> list[Job]:
        """Every count-th job: neighbours in a folder are often of one size."""
        return list(jobs[self.index - 1 :: self.count])


def shard_from_text(text: str) -> Shard:
    """`2/5`. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.index <= shard.count:
        raise UsageError("--shard", repr(text), "I/N with I from 1 to N, such as 2/5")
    return shard


@dataclass(frozen=True, slots=True)
class Job:
    """One picture: read `source`, write `output`. problem: why that must not be, "" where nothing is against it."""

    source: Path
    output: Path
    problem: str = ""


def plan_jobs(inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming) -> list[Job]:
    """Files, folders and patterns (`photos/**/*.jpg`) -> jobs, in a stable order.

    `output` is a file where there is one input, a file, and `output` has a picture's suffix; else a folder, in which
    the tree of each input folder, and of each pattern's fixed part, is repeated. Two pictures for one output, and an
    output that is an input, are problems of those jobs. Raises UsageError: nothing to do, or nothing but problems.
    """
    if output.suffix.lower() in UNWRITABLE_SUFFIXES and not output.is_dir():
        raise UsageError("-o", f"{output}", f"a folder, or a name with {' '.join(PICTURE_SUFFIXES)}")
    is_file = output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir()
    if is_file and len(inputs) == 1 and not inputs[0].is_dir() and not _is_pattern(inputs[0]):
        jobs = [Job(inputs[0], output)]
    elif is_file:
        raise UsageError("-o", f"{output} is a file", "a folder for several pictures", "give -o a folder")
    else:
        jobs = list(_folder_jobs(inputs, output, recursive, naming))
    if not jobs:
        where = ", ".join(map(str, inputs))
        raise UsageError(where, "no pictures", f"files with {' '.join(PICTURE_SUFFIXES)}", "-r looks into subfolders")
    jobs = _with_problems(jobs)
    if all(job.problem for job in jobs):
        raise UsageError(jobs[0].output, jobs[0].problem, fix="choose another -o, --name or --format")
    return jobs


def _folder_jobs(inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming) -> Iterator[Job]:
    for item in inputs:
        if _is_pattern(item):
            yield from _pattern_jobs(item, output, naming)
            continue
        if not item.is_dir():
            yield Job(item, output / naming.name(item))
            continue
        # Outputs of an earlier call are no inputs.
        skipped = output.resolve() if output.resolve() != item.resolve() else None
        for source in sorted(item.rglob("*") if recursive else item.glob("*")):
            hidden = any(part.startswith(".") for part in source.relative_to(item).parts)
            # A link that leads nowhere is no folder: it is reported, not passed over.
            if hidden or source.suffix.lower() not in PICTURE_SUFFIXES or source.is_dir():
                continue
            if skipped is None or skipped not in source.resolve().parents:
                yield Job(source, output / source.relative_to(item).with_name(naming.name(source)))


def _is_pattern(item: Path) -> bool:
    # A file that is really called so comes first.
    return bool(_GLOB_CHARACTERS & set(str(item))) and not item.exists()


def _pattern_jobs(pattern: Path, output: Path, naming: Naming) -> Iterator[Job]:
    """What shells do with a pattern, for those that leave it to the program. Only pictures match."""
    fixed = Path(*takewhile(lambda part: not _GLOB_CHARACTERS & set(part), pattern.parts))
    # pathlib's own glob wants a pattern below a folder, never an absolute one.
    for name in sorted(glob.glob(str(pattern), recursive=True)):  # noqa: PTH207
        source = Path(name)
        if source.is_file() and source.suffix.lower() in PICTURE_SUFFIXES:
            yield Job(source, output / source.relative_to(fixed).with_name(naming.name(source)))


def _with_problems(jobs: Sequence[Job]) -> list[Job]:
    """Without what is named twice; every job of a collision gets it as its problem: which one is meant, who knows."""
    # Windows sees one file in a.png and A.png.
    places = [os.path.normcase(str(job.output.resolve())) for job in jobs]
    sources = {job.source.resolve() for job in jobs}
    by_place: dict[str, dict[Path, Job]] = {}
    for job, place in zip(jobs, places, strict=True):
        by_place.setdefault(place, {}).setdefault(job.source.resolve(), job)
    checked = []
    for same in by_place.values():
        names = " and ".join(str(job.source) for job in same.values())
        for job in same.values():
            problem = f"{names} would both be written here" if len(same) > 1 else ""
            if job.output.resolve() in sources:
                problem = "is itself an input"
            checked.append(replace(job, problem=problem))
    return checked


def check_outputs(jobs: Sequence[Job], skip_existing: bool, overwrite: bool) -> None:
    """Raises UsageError where outputs exist and neither option says what to do, or where writing is impossible."""
    existing = [job.output for job in jobs if job.output.exists()]
    if existing and not (skip_existing or overwrite):
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(existing[0], f"already exists{more}", fix="give --skip-existing or --overwrite")
    for folder in {job.output.parent for job in jobs}:
        # Nothing is created for a batch that then fails.
        check_writable_place(folder)
