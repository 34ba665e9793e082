"""What is wrong with a call of `intsr upscale` before any picture is read: arguments in each other's place, options
that would have no effect.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from intsr.errors import UsageError
from intsr.manifest import Manifest
from intsr.runtime.batch.jobs import Job
from intsr.runtime.pictures.formats.registry import FORMATS, PICTURE_SUFFIXES, UNREAD_SUFFIXES
from intsr.targets import target_from_name


def check_engine_comes_first(engine: Path, inputs: Sequence[Path]) -> None:
    """Raises UsageError where the first argument is a picture."""
    if engine.suffix.lower() not in (*PICTURE_SUFFIXES, *UNREAD_SUFFIXES) or _is_zip(engine):
        return
    swapped = next((path for path in inputs if path.suffix == ".engine"), None)
    usage = f"intsr upscale {swapped or 'ENGINE'} {engine} -o ..."
    raise UsageError(engine, "is a picture", "the engine first", f"write {usage}")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def check_effects(
    given: Sequence[str], jobs: Sequence[Job], inputs: Sequence[Path], output: Path, manifest: Manifest
) -> None:
    """given: options by their names. output: of `-o`. Raises UsageError for the first that changes nothing here."""
    whys = {
        "--cuda-backend": _no_gpu(manifest),
        "--quality": _no_quality(jobs),
        "-r": _no_folder(inputs),
        **dict.fromkeys(("--name", "--suffix", "--format"), _named(jobs, output)),
    }
    for option in given:
        if why := whys.get(option):
            raise UsageError(option, f"has no effect: {why}", fix="leave it out")


def _named(jobs: Sequence[Job], output: Path) -> str:
    return f"-o {output} names the file, and no folder" if [job.output for job in jobs] == [output] else ""


def _no_folder(inputs: Sequence[Path]) -> str:
    # What is not there may have been meant for a folder: its report says that it is not.
    # os.path never raises, as pathlib does for a name that is too long.
    if all(os.path.isfile(path) or any(letter in str(path) for letter in "*?[") for path in inputs):  # noqa: PTH113
        return "no input is a folder; patterns go deeper by **"
    return ""


def _no_quality(jobs: Sequence[Job]) -> str:
    lossy = {suffix for item in FORMATS if item.default_quality is not None for suffix in item.suffixes}
    has_one = any(job.output.suffix.lower() in lossy for job in jobs)
    return "" if has_one else "no output is JPEG, WebP or AVIF"


def _no_gpu(manifest: Manifest) -> str:
    return "" if target_from_name(manifest.target).gpu else f"the engine is for target {manifest.target}, no GPU"
