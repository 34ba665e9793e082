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
    """One launch of one kernel."""

    kernel: str
    # Blocks along x, y and z.
    grid: tuple[int, int, int]
    # Threads of a block, along x.
    block: int
    params: Params
    # Dynamic shared memory of a block.
    shared_bytes: int = 0
    # Blocks along x that can read one another's shared memory.
    cluster: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Launches in order, and the array they fill."""

    launches: tuple[Launch, ...]
    output: DeviceArray
    # Arrays that must live as long as the plan.
    keep: tuple[Any, ...] = ()


class DeviceMemory(Protocol):
    """The part of a device that plans for pictures need."""

    multiprocessors: int

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray: ...

    def upload(self, array: Array) -> DeviceArray: ...


class Device(DeviceMemory, Protocol):
    """A GPU, or the emulation of one."""

    name: str
    # CUDA compute capability.
    capability: tuple[int, int]
    # The most dynamic shared memory that a block can have.
    shared_bytes: int
    emulated: bool

    def download(self, array: DeviceArray) -> Array: ...

    def run(self, plan: Plan) -> DeviceArray:
        """Start all launches of the plan and return its output, complete once downloaded or synchronized."""
        ...

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Return the median device time of one run of the plan."""
        ...

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        """Return the median device time of a copy within the device's memory."""
        ...
