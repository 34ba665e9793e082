"""What an engine can run on here."""

from __future__ import annotations

import os
from dataclasses import dataclass

from intsr.cuda import driver
from intsr.errors import EngineMismatchError


@dataclass(frozen=True, slots=True)
class Device:
    """name: as `--device` takes it. description: for people."""

    name: str
    description: str


def list_devices(cuda_backend: str) -> tuple[list[Device], str]:
    """The CPU and every GPU; and why there is no GPU, "" where there is one."""
    from intsr.runtime.measure.machine import cpu_model

    devices = [Device("cpu", f"{cpu_model()}, {os.cpu_count()} threads")]
    try:
        found = driver.list_devices(cuda_backend, "GPU", "gpu")
    except EngineMismatchError as error:
        return devices, str(error)
    devices += [Device(f"cuda:{device.index}", device.name) for device in found]
    return devices, "" if found else "GPU: the driver sees none"
