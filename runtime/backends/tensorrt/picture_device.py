"""Memory, launches and times for whole pictures on the device of an open engine, as `intsr.kernels` asks for them.

This and its neighbours `picture_*` are the only modules of the runtime that import `intsr.kernels`, of which
they use the part that needs no more than NumPy; they are imported when an engine for a GPU is opened, not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray
from intsr.errors import BuildError
from intsr.kernels.launches import sources
from intsr.kernels.launches.launch import Plan
from intsr.kernels.launches.parameters import KERNELS
from intsr.runtime.backends.tensorrt.session import Session

SOURCES = ("picture", "color_fix")


def read_fatbins() -> dict[str, bytes]:
    """By source. Raises BuildError where they were not built with the package."""
    images = {}
    for source in SOURCES:
        path = sources.fatbin_path(source)
        if not path.is_file():
            raise BuildError("device kernels", f"{path.name} is not built", fix="run: python -m intsr.kernels.build")
        images[source] = path.read_bytes()
    return images


class KernelDevice:
    """What picture plans are made for, and what runs them in the session's compute stream.

    Memory is held until `free`, kernels until the session closes. Raises EngineMismatchError, OutOfMemoryError.
    """

    def __init__(self, session: Session, images: dict[str, bytes]) -> None:
        self._session, self._cuda = session, session.cuda
        self.multiprocessors = session.cuda.device.multiprocessors
        self._addresses: list[int] = []
        self._pinned: list[Array] = []
        self._modules: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}
        session.on_close(self._unload)
        for source, image in images.items():
            self._modules[source] = session.cuda.load_module(image)
        for name, (source, params) in KERNELS.items():
            if source in images:
                self._kernels[name] = session.cuda.kernel(self._modules[source], name, params.places())

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        address = self._cuda.alloc(max(math.prod(shape) * kind.itemsize, 1))
        self._addresses.append(address)
        return DeviceArray(address, tuple(shape), kind)

    def upload(self, array: Array) -> DeviceArray:
        """Done when it returns: for what is small and stays."""
        dense = np.ascontiguousarray(array)
        result = self.empty(dense.shape, dense.dtype)
        self._cuda.upload(result.pointer, dense, self._session.compute)
        self._cuda.synchronize(self._session.compute)
        return result

    def pinned(self, size_bytes: int) -> Array:
        """Page-locked host memory, (size_bytes,) uint8."""
        memory = self._cuda.alloc_pinned(size_bytes)
        self._pinned.append(memory)
        return memory

    def run(self, plan: Plan) -> DeviceArray:
        """Into the compute stream, behind what is there."""
        for launch in plan.launches:
            kernel, params = self._kernels[launch.kernel], bytes(launch.params)
            self._cuda.launch_kernel(
                kernel,
                self._session.compute,
                grid=launch.grid,
                block=launch.block,
                shared_bytes=launch.shared_bytes,
                params=params,
            )
        return plan.output

    def free(self) -> None:
        """All memory; nothing may be at work with it."""
        while self._addresses:
            self._cuda.free(self._addresses.pop())
        while self._pinned:
            self._cuda.free_pinned(self._pinned.pop())

    def _unload(self) -> None:
        self._kernels.clear()
        while self._modules:
            self._cuda.unload_module(self._modules.popitem()[1])


class Laps:
    """Device times of parts of work in the compute stream. names: of the parts, for a clock; one may come twice."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._session, self._names, self._passed = session, tuple(names), 0
        self._events = [session.create_event() for _ in range(len(names) + 1)]
        # pycuda frees what nobody refers to any more: before the context goes.
        session.on_close(self._events.clear)

    def start(self) -> None:
        self._passed = 0
        self._session.cuda.record(self._events[0], self._session.compute)

    def lap(self) -> None:
        """The next part ends here."""
        self._passed += 1
        self._session.cuda.record(self._events[self._passed], self._session.compute)

    def finish(self, record: Callable[[str, float], None]) -> None:
        """Wait for the end of the last part. record: told the milliseconds of each."""
        self._session.cuda.synchronize_event(self._events[-1])
        for name, ends in zip(self._names, pairwise(self._events), strict=True):
            record(name, self._session.cuda.elapsed_ms(*ends))
