"""Whether an engine runs here, told from its manifest alone: no library sees a byte of it before this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from intsr.errors import EngineMismatchError
from intsr.runtime.networks import BACKENDS
from intsr.types import Manifest


@dataclass(frozen=True, slots=True)
class TargetLibrary:
    """The library that runs a target. distributions: the packages that bring `module`, in the order to ask.

    install: the command that brings it.
    """

    module: str
    distributions: tuple[str, ...]
    install: str


LIBRARIES: dict[str, TargetLibrary] = {
    "cpu": TargetLibrary("openvino", ("openvino",), "pip install -U openvino"),
    "onnxruntime": TargetLibrary(
        "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), 'pip install -U "intsr[compile]"'
    ),
}
# Targets whose engines this version builds and does not run.
GPU_TARGETS = ("tensorrt", "tensorrt-rtx")


def release_from_version(version: str) -> tuple[int, ...]:
    """The leading dotted numbers: `2026.4.1-22982-abc` -> (2026, 4, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def installed_version(library: TargetLibrary) -> str | None:
    """Of the installed package, without importing it; None where it is not installed."""
    if find_spec(library.module) is None:
        return None
    for distribution in library.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_runs_here(manifest: Manifest, where: object) -> None:
    """Raises EngineMismatchError: what was built, what is here, and the command that fixes it."""
    built = f"built for target {manifest.target} with {manifest.library} {manifest.library_version}"
    again = f"make an engine that runs here with: intsr compile MODEL --target {manifest.target}"
    if manifest.target in GPU_TARGETS:
        gpu = f" for {manifest.gpu_architecture}" if manifest.gpu_architecture else ""
        raise EngineMismatchError(
            where,
            f"{built}{gpu}; this version has no NVIDIA GPU runtime",
            f"target {' or '.join(BACKENDS)}",
            "make an engine that runs here with: intsr compile MODEL --target cpu; intsr extract writes the plans "
            "for trtexec",
        )
    if manifest.target not in BACKENDS or manifest.library != LIBRARIES[manifest.target].module:
        raise EngineMismatchError(
            where,
            built,
            f"target {' or '.join(BACKENDS)}",
            "install the intsr that built it, or make an engine that runs here with: "
            "intsr compile MODEL --target cpu",
        )
    library = LIBRARIES[manifest.target]
    installed = installed_version(library)
    if installed is None:
        raise EngineMismatchError(where, f"{built}; {library.module} is not installed", fix=library.install)
    # Both libraries read what their older releases wrote, and refuse what newer ones wrote.
    if release_from_version(installed) < release_from_version(manifest.library_version):
        fix = f"{library.install}, or {again}"
        raise EngineMismatchError(where, f"{built}; here is {installed}", "the same version or a newer one", fix)
