"""The engines that the window offers: those that were named, and those in folders that were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from intsr.bundle import read_manifest
from intsr.errors import IntsrError, UsageError
from intsr.manifest import Manifest
from intsr.runtime.backends.compatibility import check_runs_here
from intsr.types import SYNTHETIC_NOTE

_SUFFIX = ".engine"
_REPORTS = ("{stem}.report.html", "{stem}.html", "report.html")


@dataclass(frozen=True, slots=True)
class Choice:
    """One engine that runs here. name: for people, of this one alone. file_bytes: of its file, which may go while the
    window is open. report: a page of `intsr report` beside it.
    """

    name: str
    path: Path
    manifest: Manifest
    file_bytes: int
    report: Path | None = None

    def facts(self) -> dict[str, str]:
        """What its file says about itself, for people."""
        manifest = self.manifest
        parts = ", ".join(manifest.parts)
        facts = {
            "file": self.path.name,
            "model": manifest.model,
            "quantized": f"{manifest.bits.upper()} by {manifest.method}: {parts}" if manifest.method else "no",
            "target": f"{manifest.target}, {manifest.library} {manifest.library_version.partition('-')[0]}",
            "floats": manifest.precision,
            "enlarges": f"{manifest.upscale_factor} times",
            "tiles": f"{' or '.join(map(str, manifest.tile_sizes))} px, {manifest.overlap_px} px shared",
            "colour fix": manifest.color_fix,
            "size": f"{self.file_bytes / 1e6:.1f} MB",
            **manifest.run_facts(),
        }
        return {key: value for key, value in facts.items() if value} | (
            {"note": SYNTHETIC_NOTE} if manifest.synthetic else {}
        )


def engines_from_paths(paths: Sequence[Path], note: Callable[[str], object]) -> dict[str, Choice]:
    """Engine files, and folders that hold some -> choices by name, in order.

    note: gets a line about each file of a folder that does not run here, or is for films. Raises, for a file that was
    named, what is wrong with it: UsageError, BundleError, EngineMismatchError; UsageError where nothing is left.
    """
    found: dict[Path, Choice] = {}
    for path in paths:
        if not path.is_dir():
            found.setdefault(path.resolve(), _checked(path))
            continue
        for file in sorted(path.glob(f"*{_SUFFIX}")):
            try:
                found.setdefault(file.resolve(), _checked(file))
            except IntsrError as error:
                note(f"left out: {error}")
    if not found:
        where = ", ".join(map(str, paths))
        raise UsageError(where, "no engine that runs here", f"files ending in {_SUFFIX}", "see intsr compile --help")
    return {choice.name: choice for choice in _with_names(list(found.values()))}


def _checked(path: Path) -> Choice:
    manifest = read_manifest(path)
    check_runs_here(manifest, path)
    if manifest.chunk is not None:
        raise UsageError(path, "is for films", "an engine for pictures", "use it with: intsr upscale")
    beside = (path.parent / name.format(stem=path.stem) for name in _REPORTS)
    report = next((page for page in beside if page.is_file()), None)
    return Choice(path.stem, path, manifest, path.stat().st_size, report)


def _with_names(choices: Sequence[Choice]) -> Iterator[Choice]:
    """Two files of one name are told apart by their folders."""
    names = [choice.name for choice in choices]
    for choice in choices:
        yield choice if names.count(choice.name) == 1 else replace(choice, name=str(choice.path))
