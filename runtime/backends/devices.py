"""What an engine can run on here."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from intsr.cuda import driver
from intsr.errors import EngineMismatchError


@dataclass(frozen=True, slots=True)
class Device:
    """What networks may run on."""

    # As `--device` takes it.
    name: str
    # For people.
    description: str


def list_devices(cuda_backend: str) -> tuple[list[Device], str]:
    """Return the CPU and every GPU; and why there is no GPU, "" where there is one."""
    devices = [Device("cpu", f"{cpu_model()}, {os.cpu_count()} threads")]
    try:
        found = driver.list_devices(cuda_backend, "GPU", "gpu")
    except EngineMismatchError as error:
        return devices, str(error)
    devices += [Device(f"cuda:{device.index}", device.name) for device in found]
    return devices, "" if found else "GPU: the driver sees none"


def cpu_model() -> str:
    """Return the processor's name as the system tells it; "" where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
