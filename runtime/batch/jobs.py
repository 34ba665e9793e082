"""Which pictures become which files: folders mirrored, collisions refused, all before the first one is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from intsr.errors import UsageError
from intsr.files import check_writable_place
from intsr.runtime.batch.naming import Naming
from intsr.runtime.batch.search import Search, has_wildcard, is_folder, once, place_of
from intsr.runtime.films.names import CONTAINERS, FILM_SUFFIXES, is_film, is_sequence, numbered, numbered_pictures
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES, UNREAD_SUFFIXES
from intsr.runtime.pictures.picture import PictureHeader

# What a suffix looks like that somebody meant for a picture: `v1.2` is a folder's name, `out.pgn` is not.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")
_SKIPPED = "not read"


@dataclass(frozen=True, slots=True)
class Job:
    """One picture or film to read and one to write."""

    source: Path
    output: Path
    # Why that must not be; "" where nothing is against it.
    problem: str = ""
    # Of the source, once it has been read.
    header: PictureHeader | None = None

    @property
    def is_film(self) -> bool:
        """Tell by the names."""
        return is_film(self.source) or self.output.suffix.lower() in CONTAINERS


def shard_of(jobs: Sequence[Job], text: str) -> list[Job]:
    """Return part I of the N parts that `I/N` shares a batch into. Raises UsageError.

    Every N-th job: neighbours in a folder are often of one size.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError("--shard", repr(text), "I/N with I from 1 to N, such as 2/5")
    return list(jobs[index - 1 :: count])


def plan_jobs(
    inputs: Sequence[Path],
    output: Path,
    *,
    naming: Naming,
    recursive: bool = False,
    must_be_folder: bool = False,
    resuming: bool = False,
    sees_frames: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> list[Job]:
    """Files, folders and patterns (`photos/**/*.jpg`) -> jobs, in a stable order.

    The output is a file where there is one input, a file, and the output has a picture's suffix; else a folder, in
    which the tree of each input folder, and of each pattern's fixed part, is repeated. A picture that was found, not
    named, and is the output for another one is an earlier call's work and left out, where the template gave it its
    name or the call resumes one. Two pictures for one output, an output that is an input or no possible file, and a
    folder that cannot be read are problems of those jobs. must_be_folder: the output ends in a slash. resuming:
    outputs that are there are an earlier call's. sees_frames: the engine is one of films, and numbered pictures are
    one, whatever they become. note: gets a line for people about each input that gave nothing, and about what was
    left out. Raises UsageError: nothing to do, or nothing but outputs that must not be.
    """
    notes = list[str]()
    one_file = len(inputs) == 1 and not is_folder(inputs[0]) and not _is_pattern(inputs[0])
    is_file = _is_for_a_file(output, must_be_folder, one_file)
    if is_file and one_file:
        jobs = list(_jobs_of_one(inputs[0], output, sees_frames))
    elif is_file:
        raise UsageError("-o", f"{output} is a file", "a folder for several pictures", "give -o a folder")
    else:
        jobs = list(_folder_jobs(inputs, output, recursive, naming, notes))
    if not jobs:
        where, more = ", ".join(map(str, inputs)), "".join(f" ({text})" for text in notes if _SKIPPED in text)
        expected = f"files with {' '.join(PICTURE_SUFFIXES)}"
        raise UsageError(where, f"no pictures{more}", expected, "" if recursive else "-r looks into subfolders")
    is_unread = any(job.problem for job in jobs)
    jobs = _with_problems(jobs, inputs, resuming, notes)
    # Another output is no help against an input that cannot be read: its report says what is.
    if all(job.problem for job in jobs) and not is_unread:
        raise UsageError(jobs[0].output, jobs[0].problem, fix="choose another -o, --name or --format")
    for text in notes:
        note(text)
    return jobs


def _jobs_of_one(source: Path, output: Path, sees_frames: bool) -> Iterator[Job]:
    """Of one name: a picture, a film, or numbered pictures, which stay pictures where the output is numbered, too,
    and the engine sees one at a time.

    Raises UsageError for a picture that would become a film, and the other way round.
    """
    job = Job(source, output)
    if is_film(source) and is_sequence(source) and is_sequence(output) and not sees_frames:
        yield from (Job(path, numbered(output, number)) for number, path in numbered_pictures(source).items())
        return
    if job.is_film and source.suffix.lower() in PICTURE_SUFFIXES and not is_sequence(source):
        raise UsageError("-o", f"{output} is a film, {source} a picture", "a picture, or a film as INPUT")
    if is_film(source) and output.suffix.lower() not in CONTAINERS and not is_sequence(output):
        expected = f"a film, {' '.join(CONTAINERS)}, or numbered pictures such as frames/%06d.png"
        raise UsageError("-o", f"{output}, while {source} is a film", expected)
    yield job


def _is_for_a_file(output: Path, must_be_folder: bool, one_file: bool) -> bool:
    """Tell whether `-o` names a file and no folder. Raises UsageError where it can be neither."""
    suffix = output.suffix.lower()
    try:
        if must_be_folder or output.is_dir():
            return False
    except OSError as error:
        raise UsageError("-o", f"{output} ({error.strerror})", fix="choose another output") from error
    if suffix in (*PICTURE_SUFFIXES, *CONTAINERS):
        return True
    known = f"a name with {' '.join((*PICTURE_SUFFIXES, *CONTAINERS))}"
    if suffix in (*UNREAD_SUFFIXES, *FILM_SUFFIXES):
        raise UsageError("-o", f"{output}", f"a folder, or {known}")
    if one_file and _SUFFIX.fullmatch(suffix):
        raise UsageError("-o", f"{output}", known, f"write {output}{os.sep} for a folder of that name")
    return False


def _is_pattern(item: Path) -> bool:
    # A file that is really called so comes first.
    return has_wildcard(str(item)) and not os.path.exists(item)  # noqa: PTH110


def _folder_jobs(
    inputs: Sequence[Path], output: Path, recursive: bool, naming: Naming, notes: list[str]
) -> Iterator[Job]:
    for item in inputs:
        is_pattern = _is_pattern(item)
        if not is_pattern and not is_folder(item):
            yield _job(item, output, naming)
            continue
        parts = item.parts if is_pattern else (*item.parts, "**" if recursive else "*")
        base = Path(*takewhile(lambda part: not has_wildcard(part), item.parts)) if is_pattern else item
        # Outputs of an earlier call are no inputs.
        skipped = place_of(output) if Path(place_of(base)) in Path(place_of(output)).parents else ""
        search = Search(skipped, takes_films=is_pattern and item.suffix.lower() in FILM_SUFFIXES)
        found = search.matches(base, parts[len(base.parts) :])
        jobs = [_job(source, output / source.relative_to(base).parent, naming) for source in once(found)]
        for folder, why in search.unreadable.items():
            problem = f"is not made: the folder cannot be read ({why})"
            jobs.append(Job(folder, output / folder.relative_to(base), problem))
        if search.other:
            suffixes = sorted({path.suffix.lower() for path in search.other})
            files, are = "file" if len(search.other) == 1 else "files", "is" if len(suffixes) == 1 else "are"
            notes.append(f"{item}: {len(search.other)} {files} skipped, as {', '.join(suffixes)} {are} {_SKIPPED}")
        elif not jobs and not search.films:
            notes.append(f"{item}: no pictures")
        if search.films:
            name = f"*{min(search.films).suffix}"
            count = "1 film" if len(search.films) == 1 else f"{len(search.films)} films"
            notes.append(f"{item}: {count} skipped: {_SKIPPED} unless named, or by a pattern such as {name}")
        yield from sorted(jobs, key=lambda job: (str(job.source) if is_pattern else "", job.source))


def _job(source: Path, folder: Path, naming: Naming) -> Job:
    if is_film(source) and is_sequence(source):
        raise UsageError("-o", f"{folder} is a folder", "the name of a film for numbered pictures, such as film.mp4")
    try:
        return Job(source, folder / naming.name(source))
    except UsageError as error:
        # Of this picture, as a trial found nothing wrong with the template: a backslash in its name.
        return Job(source, folder / source.name, f"is not made: {error}")


def _with_problems(jobs: Sequence[Job], named: Sequence[Path], resuming: bool, notes: list[str]) -> list[Job]:
    """Drop what is named twice; every job of a collision gets it as its problem: which one is meant, who knows."""
    whole = [(job, place_of(job.source), place_of(job.output)) for job in jobs]
    earlier = _earlier_outputs(whole, {place_of(path) for path in named}, resuming)
    if earlier:
        more = f" and {len(earlier) - 1} more" if len(earlier) > 1 else ""
        notes.append(f"{min(earlier.values())}{more}: an earlier call's output for another input, so no input")
    kept = [way for way in whole if way[0].problem or way[1] not in earlier]
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
            unwritable = _why_unwritable(job.output, resuming)
            checked.append(job if is_unread else replace(job, problem=unwritable or problem))
    return checked


def _earlier_outputs(ways: Sequence[tuple[Job, str, str]], named: set[str], resuming: bool) -> dict[str, Path]:
    """Find, by their place, sources that are another job's output: a call that resumes or repeats another meets them
    where they lie beside inputs. What is named is meant. ways: jobs with the places of source and output.

    Where the stem is the input's own (a.png of a.jpg), it may be a picture of its own, and must not be destroyed.
    """
    makers: dict[str, set[str]] = {}
    for job, source, place in ways:
        if resuming or job.output.stem != job.source.stem:
            makers.setdefault(place, set()).add(source)
    found = ((job.source, source) for job, source, _ in ways if not job.problem and source not in named)
    return {source: path for path, source in found if makers.get(source, set()) - {source}}


def _why_unwritable(output: Path, resuming: bool) -> str:
    """Tell what the system has against this name, "" for nothing. Creates nothing."""
    if is_folder(output):
        return "is a folder"
    # None of pathlib's: those raise for a name that is too long.
    if resuming and os.path.islink(output) and not os.path.exists(output):  # noqa: PTH110, PTH114
        return "is a link that leads nowhere: remove it"
    # It looks at the length of a name only in a folder that is there.
    nearest = next(filter(is_folder, output.parents), output.parent)
    for path in (output, nearest / output.name):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"cannot be written ({error.strerror})"
    return ""


def _existing(job: Job) -> list[Path]:
    """What is there of a job's output."""
    if job.is_film and is_sequence(job.output):
        return list(numbered_pictures(job.output).values()) if is_folder(job.output.parent) else []
    return [job.output] if os.path.lexists(job.output) else []


def check_outputs(jobs: Sequence[Job], skip_existing: bool, overwrite: bool) -> None:
    """Raises UsageError where outputs exist and neither option says what to do, or where writing is impossible."""
    # What has a problem is not written, and its output may be nothing that can be asked for.
    jobs = [job for job in jobs if not job.problem]
    # A link that leads nowhere would be replaced all the same.
    existing = [found for job in jobs for found in _existing(job)]
    check_existing(existing, skip_existing, overwrite)
    for folder in {job.output.parent for job in jobs}:
        # Nothing is created for a batch that then fails.
        check_writable_place(folder)


def check_existing(existing: Sequence[object], skip_existing: bool, overwrite: bool) -> None:
    """existing: outputs that are there already. Raises UsageError where neither option says what to do with them."""
    if existing and not (skip_existing or overwrite):
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(existing[0], f"already exists{more}", fix="give --skip-existing or --overwrite")
