"""What a build is asked for and what it reports: plain data that travels between parent and child as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HARDWARE_COMPATIBILITY = ("none", "ampere+", "same-compute-capability")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How one network is built."""

    # Name of the target.
    target: str
    # Limit of scratch memory while a kernel runs; None for the library's own.
    workspace_bytes: int | None = None
    # Which other GPUs a `tensorrt` plan must run on; anything but `none` costs speed.
    hardware_compatibility: str = "none"
    # Of `tensorrt`, read before and rewritten after the build. It saves time and does not make builds reproducible.
    timing_cache: Path | None = None
    # Keep the finished plan's kernels in the report.
    detailed: bool = True

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            choices = ", ".join(HARDWARE_COMPATIBILITY)
            raise ValueError(f"hardware_compatibility is {self.hardware_compatibility!r}, not one of {choices}")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ValueError(f"workspace_bytes is {self.workspace_bytes}, not positive")


@dataclass(frozen=True, slots=True)
class Build:
    """One graph to be built."""

    onnx_path: Path
    plan_path: Path
    options: BuildOptions


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build took and gave."""

    # Of the build alone, without starting the child.
    seconds: float
    plan_bytes: int
    # The child's peak resident memory, which the worker fills in.
    peak_bytes: int
    # What built it.
    library: str
    library_version: str
    # GPUs that the plan runs on, for example `sm80+`; empty for CPUs.
    gpu_architecture: str = ""
    # The finished plan; empty where the target has none or it was not asked for.
    plan: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan_bytes <= 0:
            raise ValueError(f"plan_bytes is {self.plan_bytes}: nothing was built")
