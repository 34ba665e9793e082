"""What a kernel runs on: arrays in its memory, launches, and whoever carries them out.

Two devices carry launches out: `devices.cuda.GpuDevice` on an NVIDIA GPU, `devices.emulated.EmulatedDevice` on the
CPU, a thread at a time, from the same sources. Everything above them is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray, device_array
from intsr.errors import UsageError
from intsr.kernels.launches.parameters import Params


def require(value: Any, where: str, dtype: type, shape: tuple[int | None, ...]) -> DeviceArray:
    """Return the array, checked; None stands for any length. Raises UsageError."""
    array = device_array(value, where, dtype, shape)
    if array.pointer % 16:
        raise UsageError(where, "an array that starts between 16-byte blocks", "an aligned one", "copy it")
    return array


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch. grid: blocks along x, y, z. block: threads, along x. cluster: blocks along x that share."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    params: Params
    shared_bytes: int = 0
    cluster: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Launches in order, and the array they fill. keep: arrays that must live as long as the plan."""

    launches: tuple[Launch, ...]
    output: DeviceArray
    keep: tuple[Any, ...] = ()


class DeviceMemory(Protocol):
    """As much of a device as plans for pictures need."""

    multiprocessors: int

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray: ...

    def upload(self, array: Array) -> DeviceArray: ...


class Device(DeviceMemory, Protocol):
    """capability: CUDA compute capability. shared_bytes: the most dynamic shared memory a block can have."""

    name: str
    capability: tuple[int, int]
    shared_bytes: int
    emulated: bool

    def download(self, array: DeviceArray) -> Array: ...

    def run(self, plan: Plan) -> DeviceArray:
        """Start all launches of the plan, in order; -> its output, complete once downloaded or synchronized."""
        ...

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Median device time of one run of the plan."""
        ...

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        """Median device time of a copy within the device's memory."""
        ...
