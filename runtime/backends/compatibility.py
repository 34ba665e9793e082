"""Whether an engine runs here, told from its manifest alone: no library sees a byte of it before this."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from intsr.errors import EngineMismatchError
from intsr.manifest import Manifest
from intsr.runtime.backends.protocol import BACKENDS

_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class TargetLibrary:
    """The library that runs a target. name: in manifests. version: of the installed one, without importing it; None
    where it is not installed. install: the command that brings it. exact: it reads no other release's engines.
    """

    name: str
    version: Callable[[], str | None]
    install: str
    exact: bool = False


def release_from_version(version: str) -> tuple[int, ...]:
    """The leading dotted numbers: `2026.4.1-22982-abc` -> (2026, 4, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def installed_version(module: str, *distributions: str) -> str | None:
    """distributions: the packages that bring `module`, in the order to ask."""
    if find_spec(module) is None:
        return None
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def rtx_version() -> str | None:
    """NVIDIA's own `tensorrt_rtx`, else the library that PyPI's packages carry, by its file's name."""
    if find_spec("tensorrt_rtx") is not None:
        return installed_version("tensorrt_rtx", "tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
    spec = find_spec(_RTX_PACKAGE) if find_spec("tensorrt_bindings") is not None else None
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in sorted(Path(folder).glob("libtensorrt_rtx.so.*.*.*")):
            return library.name.removeprefix("libtensorrt_rtx.so.")
    return None


LIBRARIES: dict[str, TargetLibrary] = {
    "cpu": TargetLibrary("openvino", lambda: installed_version("openvino", "openvino"), "pip install -U openvino"),
    "onnxruntime": TargetLibrary(
        "onnxruntime",
        lambda: installed_version("onnxruntime", "onnxruntime", "onnxruntime-gpu"),
        'pip install -U "intsr[compile]"',
    ),
    "tensorrt": TargetLibrary(
        "tensorrt",
        lambda: installed_version("tensorrt", "tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        'pip install "intsr[tensorrt]"',
        exact=True,
    ),
    "tensorrt-rtx": TargetLibrary("tensorrt-rtx", rtx_version, 'pip install "intsr[rtx]"', exact=True),
}


def check_runs_here(manifest: Manifest, where: object) -> None:
    """Raises EngineMismatchError: what was built, what is here, and the command that fixes it."""
    gpu = f" for {manifest.gpu_architecture}" if manifest.gpu_architecture else ""
    built = f"built for target {manifest.target} with {manifest.library} {manifest.library_version}{gpu}"
    again = f"make an engine that runs here with: intsr compile MODEL --target {manifest.target}"
    library = LIBRARIES.get(manifest.target)
    if library is None or manifest.library != library.name:
        raise EngineMismatchError(
            where,
            built,
            f"target {' or '.join(BACKENDS)}",
            "install the intsr that built it, or make an engine that runs here with: "
            "intsr compile MODEL --target cpu",
        )
    installed = library.version()
    if installed is None:
        fix = library.install + (", or intsr compile MODEL --target cpu" if library.exact else "")
        raise EngineMismatchError(where, f"{built}; {library.name} is not installed", fix=fix)
    here, wanted = release_from_version(installed), release_from_version(manifest.library_version)
    if library.exact:
        # To as many numbers as both give: a build number may be missing on one side.
        count = min(len(here), len(wanted))
        fits, expected = here[:count] == wanted[:count] and count > 0, "the same version: plans run on no other"
    else:
        # These libraries read what their older releases wrote, and refuse what newer ones wrote.
        fits, expected = here >= wanted, "the same version or a newer one"
    if not fits:
        raise EngineMismatchError(where, f"{built}; here is {installed}", expected, f"{library.install}, or {again}")
