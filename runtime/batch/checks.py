"""What is wrong with a call of `intsr upscale` before a picture is read: arguments swapped, or without effect."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from intsr.errors import UsageError
from intsr.manifest import Manifest
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.search import has_wildcard
from intsr.runtime.films.names import FILM_SUFFIXES, is_sequence
from intsr.runtime.pictures.formats.registry import FORMATS, PICTURE_SUFFIXES, UNREAD_SUFFIXES
from intsr.targets import target_from_name


def check_engine_comes_first(engine: Path, inputs: Sequence[Path]) -> None:
    """Raises UsageError where the first argument is a picture or a film."""
    # is_zipfile is False for what cannot be opened.
    if engine.suffix.lower() not in (*PICTURE_SUFFIXES, *UNREAD_SUFFIXES, *FILM_SUFFIXES) or zipfile.is_zipfile(
        engine
    ):
        return
    swapped = next((path for path in inputs if path.suffix == ".engine"), None)
    usage = f"intsr upscale {swapped or 'ENGINE'} {engine} -o ..."
    raise UsageError(
        engine,
        "is a film" if engine.suffix.lower() in FILM_SUFFIXES else "is a picture",
        "the engine first",
        f"write {usage}",
    )


def check_effects(
    given: Mapping[str, bool], jobs: Sequence[Job], inputs: Sequence[Path], *, output: Path, manifest: Manifest
) -> None:
    """given: options -> whether they are. output: of `-o`. Raises UsageError for the first that changes nothing."""
    lossy = {suffix for item in FORMATS if item.default_quality is not None for suffix in item.suffixes}
    is_lossy = any(job.output.suffix.lower() in lossy for job in jobs)
    is_named = [job.output for job in jobs] == [output]
    # What is not there may have been meant for a folder: its report says that it is not.
    # os.path never raises, as pathlib does for a name that is too long.
    no_folder = all(os.path.isfile(path) or has_wildcard(str(path)) for path in inputs)  # noqa: PTH113
    has_gpu = target_from_name(manifest.target).gpu
    films = [job for job in jobs if job.is_film]
    encoded = any(not is_sequence(job.output) for job in films)
    named = f"-o {output} names the file, and no folder" if is_named else ""
    whys = {
        "--cuda-backend": "" if has_gpu else f"the engine is for target {manifest.target}, no GPU",
        "--no-cache": "" if target_from_name(manifest.target).keeps else f"target {manifest.target} keeps nothing",
        "--quality": "" if is_lossy else "no output is JPEG, WebP or AVIF",
        "-r": "no input is a folder; patterns go deeper by **" if no_folder else "",
        **dict.fromkeys(("--name", "--suffix", "--format"), named),
        **dict.fromkeys(("--start", "--duration"), "" if films else "no input is a film"),
        **dict.fromkeys(("--codec", "--crf", "--preset"), "" if encoded else "no output is a film"),
        "--fps": "" if any(is_sequence(job.source) for job in films) else "no input is numbered pictures",
    }
    for option, is_given in given.items():
        if is_given and (why := whys[option]):
            raise UsageError(option, f"has no effect: {why}", fix="leave it out")
