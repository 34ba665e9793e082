"""Arrays of other libraries in GPU memory, by `__cuda_array_interface__` (CuPy, PyTorch, Numba, PyCUDA have it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intsr.errors import UsageError
from intsr.types import TensorInfo

# Of an array whose maker does not say which stream it is written in, as PyTorch's: it may be any.
UNKNOWN_STREAM = -1


@dataclass(frozen=True, slots=True)
class CudaArray:
    """A tensor in GPU memory that stays the engine's own: the next run overwrites it. stream: where it is written."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    stream: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


def address_and_stream(array: Any, info: TensorInfo, writable: bool) -> tuple[int, int | None]:
    """Where it is, and the stream that its maker writes it in: None where nobody writes it, or `UNKNOWN_STREAM`.

    Raises UsageError where it has another shape, dtype or layout than the network's tensor.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        got = f"a {type(array).__name__} without __cuda_array_interface__"
        raise UsageError(f"array for {info.name}", got, "an array in GPU memory")
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    if (shape, dtype) != (info.shape, np.dtype(info.dtype)):
        raise UsageError(f"array for {info.name}", f"{shape} {dtype}", f"{info.shape} {info.dtype}")
    strides = interface.get("strides")
    if strides is not None and not _is_contiguous(shape, tuple(strides), dtype.itemsize):
        raise UsageError(f"array for {info.name}", f"strides {tuple(strides)}", "a contiguous array")
    address, read_only = interface["data"]
    if writable and read_only:
        raise UsageError(f"array for {info.name}", "read-only memory", "memory that can be written")
    # An explicit None says that nothing is to be waited for. No entry says nothing: PyTorch's interface is of
    # version 2, which knows no streams, and its kernels may still be running.
    return int(address), interface.get("stream", UNKNOWN_STREAM)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        # The stride of a single element means nothing, and libraries fill in what they like.
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
