"""Where and when a measurement was taken, for the record beside its numbers."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from intsr.runtime.backends.compatibility import cpu_model

INCLUDED = "resize, tiling, networks, copies to and from a GPU, blending and colour fix; no file is read or written"
_LIBRARIES = (
    *("numpy", "pillow", "openvino", "onnxruntime", "torch"),
    *("tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "pycuda"),
)
# nvidia-smi's names -> ours, with units
_GPU_FIELDS = {
    "index": "index",
    "name": "name",
    "driver_version": "driver_version",
    "memory.total": "memory_total_mib",
    "clocks.sm": "clock_sm_mhz",
    "clocks.max.sm": "clock_sm_max_mhz",
    "clocks.mem": "clock_memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "pstate": "performance_state",
}
_SMI_TIMEOUT_S = 10


def environment(threads: int, input_px: tuple[int, int]) -> dict[str, Any]:
    """Return machine, libraries, GPUs with their clocks at this moment, date, and what is measured."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "gpus": gpus_from_nvidia_smi(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "input_px": list(input_px),
        "included": INCLUDED,
    }


def gpus_from_nvidia_smi() -> list[dict[str, str]]:
    """Return a mapping a GPU, values as nvidia-smi writes them, in the units of the keys."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(_GPU_FIELDS.values(), row, strict=True)) for row in rows if len(row) == len(_GPU_FIELDS)]


def clock_from_gpus(gpus: Sequence[Mapping[str, str]], device: str) -> float | None:
    """Return the SM clock in MHz of the one GPU whose name is in `device`, None where the driver does not say."""
    clocks = [gpu["clock_sm_mhz"] for gpu in gpus if f" {gpu['name']} (" in device]
    try:
        return float(clocks[0]) if len(clocks) == 1 else None
    except ValueError:
        # A word instead of a number: the driver does not say.
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
