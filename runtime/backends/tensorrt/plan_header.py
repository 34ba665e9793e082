"""What a plan and a manifest say about where the plan runs: read before TensorRT sees a byte of it."""

from __future__ import annotations

import re

from intsr.cuda.driver import CudaDevice
from intsr.errors import EngineMismatchError
from intsr.manifest import Manifest
from intsr.targets import target_from_name

# Of the library that built the plan: major, minor, patch, build, one byte each.
_VERSION = slice(24, 28)
_HEADER_BYTES = 64
# How a plan's plugins may be made: compiled into the plan, so that nothing has to be loaded first. A plugin of any
# other kind would be code beside the plan, which this runtime has not.
AHEAD_OF_TIME = "ahead-of-time"


def check_plan(view: memoryview, manifest: Manifest, where: object) -> None:
    """Raises EngineMismatchError where the plan is no plan, of the other library, or of another version."""
    fix = f"compile the model again: intsr compile MODEL --target {manifest.target}"
    if len(view) < _HEADER_BYTES:
        raise EngineMismatchError(where, f"the plan has {len(view)} bytes", f"{_HEADER_BYTES} or more", fix)
    tag, expected = int.from_bytes(view[:4], "little"), target_from_name(manifest.target).plan_tag
    if tag != expected:
        wanted = f"{expected:#010x} of {manifest.target}"
        raise EngineMismatchError(where, f"the plan starts with {tag:#010x}", wanted, fix)
    built = tuple(view[_VERSION])
    stated = tuple(int(part) for part in re.findall(r"\d+", manifest.library_version)[:4])
    # One byte holds no more than 255.
    if len(stated) < 3 or built[: len(stated)] != tuple(part & 0xFF for part in stated):
        got = f"the plan is of {manifest.target} {'.'.join(map(str, built))}"
        raise EngineMismatchError(where, got, f"{manifest.library_version} by the manifest", fix)


def check_plugins(manifest: Manifest, where: object) -> None:
    """Nothing is loaded for plugins that are compiled ahead of time. Raises EngineMismatchError for any other."""
    for network, plan in manifest.build.get("plans", {}).items():
        for plugin in plan.get("plugins", ()):
            if plugin.get("compiled") != AHEAD_OF_TIME:
                got = f"{network} needs plugin {plugin.get('name')}, compiled {plugin.get('compiled')}"
                fix = f"compile the model again: intsr compile MODEL --target {manifest.target}"
                raise EngineMismatchError(where, got, "plugins compiled ahead of time", fix)


def check_device(manifest: Manifest, device: CudaDevice, where: object) -> None:
    """Raises EngineMismatchError where the plan is not for this GPU's architecture."""
    if architecture_fits(manifest.gpu_architecture, device.capability):
        return
    got = f"built for {manifest.gpu_architecture or 'no GPU architecture'}; here is {device}"
    # Where RTX's plans do not run, there is no RTX to make one with.
    fix = "choose one with --device, or make an engine for this one, on it: intsr compile MODEL --target tensorrt"
    raise EngineMismatchError(where, got, "a GPU of that architecture", fix)


def architecture_fits(architecture: str, capability: tuple[int, int]) -> bool:
    """Tell whether it is that capability (`sm89`), one of them (`sm86,sm89`), that or a later one (`sm80+`)."""
    for part in architecture.split(","):
        if match := re.fullmatch(r"sm(\d+)(\d)(\+?)", part.strip()):
            wanted = int(match[1]), int(match[2])
            if capability == wanted or (match[3] and capability > wanted):
                return True
    return False
