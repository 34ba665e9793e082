"""What networks can run on here, and whether an engine does: no library sees a byte of it before this."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from importlib.util import find_spec
from math import prod
from pathlib import Path

from intsr.cuda import driver
from intsr.errors import EngineMismatchError
from intsr.manifest import Manifest
from intsr.targets import TARGET_NAMES, TARGETS, Target

# In a network's plan in the manifest: bytes that its first inference took when it was built, for each element of its
# input.
INFERENCE_BYTES = "inference_bytes_per_element"
CPU_INFO = Path("/proc/cpuinfo")


def cpu_description() -> str:
    """Return Linux's own words on the first CPU, vendor and flags among them; "" elsewhere."""
    try:
        return CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return ""


def cpu_kind() -> str:
    """Return what code made for this CPU depends on: vendor, model and instructions, or what the system tells."""
    found = re.findall(
        r"^(?:vendor_id|cpu family|model|stepping|flags|Features|CPU )\b.*", cpu_description(), re.MULTILINE
    )
    return "\n".join(found) or cpu_model()


def cpu_model() -> str:
    """Return the processor's name as the system tells it; "" where it does not."""
    found = re.search(r"^model name\s*:(.*)", cpu_description(), re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def list_devices() -> tuple[dict[str, str], str]:
    """Return the CPU and every GPU, `--device` -> for people; and why there is no GPU, "" where there is one."""
    devices = {"cpu": f"{cpu_model()}, {os.cpu_count()} threads"}
    try:
        found = driver.list_devices("cuda-python", "GPU", "gpu")
    except EngineMismatchError as error:
        return devices, str(error)
    devices |= {f"cuda:{device.index}": device.name for device in found}
    return devices, "" if found else "GPU: the driver sees none"


def release_from_version(version: str) -> tuple[int, ...]:
    """Return the leading dotted numbers: `2026.4.1-22982-abc` -> (2026, 4, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def installed_version(target: Target) -> str | None:
    """Return the version of the target's library without importing it; None where it is not installed."""
    if find_spec(target.module) is None:
        return None
    for distribution in target.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def expected_inference_bytes(manifest: Manifest) -> int:
    """Return what running the engine takes beside its weights, as measured when it was built; 0 where nobody did."""
    plans = manifest.build.get("plans", {})
    return sum(
        round(plans.get(entry.name, {}).get(INFERENCE_BYTES, 0.0) * prod(entry.inputs[0].shape))
        for entry in manifest.networks
    )


def check_runs_here(manifest: Manifest, where: object) -> None:
    """Raise EngineMismatchError where the engine does not run here: what it is, what is here, and what fixes it."""
    gpu = f" for {manifest.gpu_architecture}" if manifest.gpu_architecture else ""
    built = f"built for target {manifest.target} with {manifest.library} {manifest.library_version}{gpu}"
    again = f"make an engine that runs here with: intsr compile MODEL --target {manifest.target}"
    target = next((target for target in TARGETS if target.name == manifest.target), None)
    if target is None or manifest.library != target.library:
        raise EngineMismatchError(
            where,
            built,
            f"target {' or '.join(TARGET_NAMES)}",
            "install the intsr that built it, or make an engine that runs here with: "
            "intsr compile MODEL --target cpu",
        )
    installed = installed_version(target)
    if installed is None:
        fix = target.install + (", or intsr compile MODEL --target cpu" if target.exact_version else "")
        raise EngineMismatchError(where, f"{built}; {target.library} is not installed", fix=fix)
    here, wanted = release_from_version(installed), release_from_version(manifest.library_version)
    if target.exact_version:
        # To as many numbers as both give: a build number may be missing on one side.
        count = min(len(here), len(wanted))
        fits, expected = here[:count] == wanted[:count] and count > 0, "the same version: plans run on no other"
    else:
        # These libraries read what their older releases wrote, and refuse what newer ones wrote.
        fits, expected = here >= wanted, "the same version or a newer one"
    if not fits:
        raise EngineMismatchError(where, f"{built}; here is {installed}", expected, f"{target.install}, or {again}")
