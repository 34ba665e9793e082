"""What a kernel runs on: arrays in its memory, launches, and whoever carries them out.

Two devices carry launches out: `launch.CudaDevice` on an NVIDIA GPU, `emulate.EmulatedDevice` on the CPU, a thread at
a time, from the same sources. Everything above them is the same for both.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.errors import UsageError, VerificationError


class ContextLostError(VerificationError):
    """A fault of a kernel, after which every call of this process to this GPU fails."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A dense array, C order, in a device's memory. owner: keeps the memory; freed with it.

    stream: handle of the CUDA stream that it is written in, for readers to wait for; None where nothing is under way.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = field(repr=False, compare=False, default=None)
    stream: int | None = field(compare=False, default=None)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


def device_array(value: Any) -> DeviceArray:
    """A DeviceArray over the memory of any object with `__cuda_array_interface__` (torch, cupy, numba, ...).

    Raises UsageError for an object without it, a read-only or strided one. The object's own stream is not waited for:
    finish its work first.
    """
    if isinstance(value, DeviceArray):
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        raise UsageError("array", type(value).__name__, "an object with __cuda_array_interface__")
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    pointer, read_only = interface["data"]
    strides = interface.get("strides")
    dense = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if strides is not None and tuple(strides) != dense:
        raise UsageError("array", f"strides {tuple(strides)}", f"{dense}, dense in C order", "make it contiguous")
    if read_only:
        raise UsageError("array", "a read-only array", "a writable one")
    return DeviceArray(pointer, shape, dtype, value, interface.get("stream"))


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch. grid: blocks along x, y, z. block: threads, along x. cluster: blocks along x that share."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    params: ctypes.Structure
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
        """Start all launches of the plan, in order; -> its output, complete once downloaded or synchronized.

        Raises ContextLostError where a kernel has done what no later call recovers from.
        """
        ...

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Median device time of one run of the plan."""
        ...

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        """Median device time of a copy within the device's memory."""
        ...
