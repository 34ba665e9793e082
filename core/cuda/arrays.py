"""Arrays in GPU memory, ours and other libraries' (CuPy, PyTorch, Numba, PyCUDA), by `__cuda_array_interface__`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intsr.errors import UsageError

# The stream of an array whose maker does not name one, as PyTorch's: its writer may be any stream.
UNKNOWN_STREAM = -1


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A dense array, C order, in a device's memory."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    # Keeps the memory, which is freed with it; None where somebody else does.
    owner: Any = field(repr=False, compare=False, default=None)
    # Handle of the CUDA stream that it is written in, for readers to wait for; None where nothing is under way.
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
            "stream": None if self.stream == UNKNOWN_STREAM else self.stream,
            "version": 3,
        }


def device_array(
    value: Any,
    where: str,
    dtype: DTypeLike | None = None,
    shape: Sequence[int | None] | None = None,
    writable: bool = True,
) -> DeviceArray:
    """Return a DeviceArray over the memory of any object with `__cuda_array_interface__`.

    dtype, shape: what the array must have; None, also as one of the lengths, stands for anything. The object's own
    stream is not waited for. Raises UsageError for another object, dtype, shape or layout, or for memory that must
    be writable and is not.
    """
    array = value if isinstance(value, DeviceArray) else _foreign_array(value, where, writable)
    wanted = array.shape if shape is None else tuple(shape)
    fits = len(array.shape) == len(wanted) and all(b in (None, a) for a, b in zip(array.shape, wanted, strict=True))
    if not fits or (dtype is not None and array.dtype != np.dtype(dtype)):
        lengths = ", ".join("any" if length is None else str(length) for length in wanted)
        expected = f"({lengths}) {array.dtype if dtype is None else np.dtype(dtype)}"
        raise UsageError(where, f"{array.shape} {array.dtype}", expected)
    return array


def _foreign_array(value: Any, where: str, writable: bool) -> DeviceArray:
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        raise UsageError(
            where, f"a {type(value).__name__} without __cuda_array_interface__", "an array in GPU memory"
        )
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is not None and not _is_contiguous(shape, tuple(strides), dtype.itemsize):
        raise UsageError(where, f"strides {tuple(strides)}", "a contiguous array")
    pointer, read_only = interface["data"]
    if writable and read_only:
        raise UsageError(where, "read-only memory", "memory that can be written")
    # An explicit None says that nothing is to be waited for. No entry says nothing: PyTorch's interface is of
    # version 2, which knows no streams, and its kernels may still be running.
    return DeviceArray(int(pointer), shape, dtype, value, interface.get("stream", UNKNOWN_STREAM))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        # The stride of a single element means nothing, and libraries fill in what they like.
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
