"""Which pictures become which files: folders mirrored, collisions refused, all before the first one is read."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import dropwhile, takewhile
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
# Of a path below something that is no folder; a link to itself is none.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
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
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
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
    the tree of each input folder, and of each pattern's fixed part, is repeated. A picture that was found, not named,
    and is the output for another one is an earlier call's work and left out. Two pictures for one output, an output
    that is an input or no possible file, and a folder that cannot be read are problems of those jobs. Raises
    UsageError: nothing to do, or nothing but outputs that must not be.
    """
    is_file = _is_for_a_file(output)
    if is_file and len(inputs) == 1 and not _is_folder(inputs[0]) and not _is_pattern(inputs[0]):
        jobs = [Job(inputs[0], output)]
    elif is_file:
        raise UsageError("-o", f"{output} is a file", "a folder for several pictures", "give -o a folder")
    else:
        jobs = list(_folder_jobs(inputs, output, recursive, naming))
    if not jobs:
        where = ", ".join(map(str, inputs))
        raise UsageError(where, "no pictures", f"files with {' '.join(PICTURE_SUFFIXES)}", "-r looks into subfolders")
    is_unread = any(job.problem for job in jobs)
    jobs = _with_problems(jobs, inputs)
    # Another output is no help against an input that cannot be read: its report says what is.
    if all(job.problem for job in jobs) and not is_unread:
        raise UsageError(jobs[0].output, jobs[0].problem, fix="choose another -o, --name or --format")
    return jobs


def _is_for_a_file(output: Path) -> bool:
    """Whether `-o` names a file and no folder. Raises UsageError where it can be neither."""
    try:
        is_folder = output.is_dir()
    except OSError as error:
        raise UsageError("-o", f"{output} ({error.strerror})", fix="choose another output") from error
    if output.suffix.lower() in UNWRITABLE_SUFFIXES and not is_folder:
        raise UsageError("-o", f"{output}", f"a folder, or a name with {' '.join(PICTURE_SUFFIXES)}")
    return output.suffix.lower() in PICTURE_SUFFIXES and not is_folder


def _is_folder(path: Path) -> bool:
    # Never raises, as pathlib's does: what cannot be looked at is tried as a file, which says why it cannot.
    return os.path.isdir(path)  # noqa: PTH112


def _is_pattern(item: Path) -> bool:
    # A file that is really called so comes first.
    return _has_wildcard(str(item)) and not os.path.exists(item)  # noqa: PTH110


def _has_wildcard(text: str) -> bool:
    return bool(_GLOB_CHARACTERS & set(text))


def _place(path: Path) -> str:
    """One text for one file, there or not. Unlike Path.resolve(), a link to itself is no error."""
    # Windows sees one file in a.png and A.png.
    return os.path.normcase(os.path.realpath(path))


def _folder_jobs(inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming) -> Iterator[Job]:
    for item in inputs:
        is_pattern = _is_pattern(item)
        if not is_pattern and not _is_folder(item):
            yield _job(item, output, naming)
            continue
        parts = item.parts if is_pattern else (*item.parts, "**" if recursive else "*")
        base = Path(*takewhile(lambda part: not _has_wildcard(part), item.parts)) if is_pattern else item
        # Outputs of an earlier call are no inputs.
        search = _Search(_place(output) if Path(_place(base)) in Path(_place(output)).parents else "", {})
        found = search.matches(base, parts[len(base.parts) :])
        jobs = [_job(source, output / source.relative_to(base).parent, naming) for source in _once(found)]
        for folder, why in search.unreadable.items():
            problem = f"is not made: the folder cannot be read ({why})"
            jobs.append(Job(folder, output / folder.relative_to(base), problem))
        yield from sorted(jobs, key=lambda job: (str(job.source) if is_pattern else "", job.source))


def _job(source: Path, folder: Path, naming: Naming) -> Job:
    try:
        return Job(source, folder / naming.name(source))
    except UsageError as error:
        # Of this picture, as a trial found nothing wrong with the template: a backslash in its name.
        return Job(source, folder / source.name, f"is not made: {error}")


@dataclass(frozen=True, slots=True)
class _Search:
    """skipped: the `_place` of a folder that is not looked into, or "". unreadable: gets each folder that cannot be
    listed, and why; pathlib and glob pass over those in silence.
    """

    skipped: str
    unreadable: dict[Path, str]

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """What shells do with a pattern, for those that leave it to the program. Only pictures match."""
        if not parts:
            yield from [folder] if self._is_picture(folder) else []
        elif self.skipped and _place(folder) == self.skipped:
            return
        elif parts[0] == "**":
            rest = list(dropwhile(lambda part: part == "**", parts)) or ["*"]
            for below in self._folders(folder):
                yield from self.matches(below, rest)
        elif _has_wildcard(parts[0]):
            _, folders, files = next(self._walk(folder), ("", [], []))
            for name in folders + files:
                if fnmatch(name, parts[0]) and (parts[0].startswith(".") or not name.startswith(".")):
                    yield from self.matches(folder / name, parts[1:])
        else:
            yield from self.matches(folder / parts[0], parts[1:])

    def _is_picture(self, path: Path) -> bool:
        # A link that leads nowhere is no folder: it is reported, not passed over.
        if path.suffix.lower() not in PICTURE_SUFFIXES or _is_folder(path):
            return False
        try:
            path.lstat()
        except OSError as error:
            # There for all that is known; reading it says what is wrong.
            return error.errno not in _ABSENT
        return not self.skipped or Path(self.skipped) not in Path(_place(path)).parents

    def _folders(self, top: Path) -> Iterator[Path]:
        """Itself and all below, but no hidden ones, and none behind links: those may lead in circles."""
        for folder, names, _ in self._walk(top):
            yield Path(folder)
            inner = [name for name in names if not name.startswith(".")]
            names[:] = [name for name in inner if not self.skipped or _place(Path(folder, name)) != self.skipped]

    def _walk(self, top: Path) -> Iterator[tuple[str | Path, list[str], list[str]]]:
        def note(error: OSError) -> None:
            if error.errno not in _ABSENT:
                self.unreadable[Path(error.filename or top)] = error.strerror or str(error)

        return os.walk(top, onerror=note)


def _once(found: Iterable[Path]) -> list[Path]:
    """Links to folders may lead to one picture on several ways: the one without them, else the shortest, stays."""
    ways = [(os.path.realpath(path.parent), path) for path in found]
    ways.sort(key=lambda way: (way[0] != os.path.abspath(way[1].parent), len(way[1].parts), way[1]))  # noqa: PTH100
    kept: dict[tuple[str, str], Path] = {}
    for folder, path in ways:
        kept.setdefault((folder, path.name), path)
    return list(kept.values())


def _with_problems(jobs: Sequence[Job], named: Sequence[Path]) -> list[Job]:
    """Without what is named twice; every job of a collision gets it as its problem: which one is meant, who knows."""
    whole = [(job, _place(job.source), _place(job.output)) for job in jobs]
    makers: dict[str, set[str]] = {}
    for _, source, place in whole:
        makers.setdefault(place, set()).add(source)
    # Where outputs lie beside inputs, a call that resumes another finds the outputs of that. What is named is meant.
    meant = {_place(path) for path in named}
    kept = [way for way in whole if way[0].problem or way[1] in meant or not makers.get(way[1], set()) - {way[1]}]
    by_place: dict[tuple[bool, str], dict[str, Job]] = {}
    for job, source, place in kept:
        by_place.setdefault((bool(job.problem), place), {}).setdefault(source, job)
    checked, inputs = [], {source for _, source, _ in kept}
    for (is_unread, place), same in by_place.items():
        names = " and ".join(str(job.source) for job in same.values())
        for job in same.values():
            problem = f"{names} would both be written here" if len(same) > 1 else ""
            if place in inputs:
                problem = "is itself an input"
            checked.append(job if is_unread else replace(job, problem=_why_unwritable(job.output) or problem))
    return checked


def _why_unwritable(output: Path) -> str:
    """What the system has against this name, "" for nothing. Creates nothing."""
    # It looks at the length of a name only in a folder that is there.
    nearest = next(filter(_is_folder, output.parents), output.parent)
    for path in (output, nearest / output.name):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"cannot be written ({error.strerror})"
    return ""


def check_outputs(jobs: Sequence[Job], skip_existing: bool, overwrite: bool) -> None:
    """Raises UsageError where outputs exist and neither option says what to do, or where writing is impossible."""
    # What has a problem is not written, and its output may be nothing that can be asked for.
    jobs = [job for job in jobs if not job.problem]
    existing = [job.output for job in jobs if job.output.exists()]
    if existing and not (skip_existing or overwrite):
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(existing[0], f"already exists{more}", fix="give --skip-existing or --overwrite")
    for folder in {job.output.parent for job in jobs}:
        # Nothing is created for a batch that then fails.
        check_writable_place(folder)
