"""Kernels on a GPU, through cuda-python and without torch.

Works in the device's primary context, on a stream of its own: arrays of torch or cupy can be read and written
(`__cuda_array_interface__`), once their own work is done. Its arrays name that stream for cupy and numba
to wait for; torch does not: `synchronize` first.
"""

from __future__ import annotations

import math
import statistics
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray
from intsr.cuda.driver import Cuda, open_cuda
from intsr.errors import BuildError, EngineMismatchError, IntsrError
from intsr.kernels.launches.launch import Launch, Plan
from intsr.kernels.launches.parameters import KERNELS, ReadParams
from intsr.kernels.launches.sources import fatbin_path

# More than the second-level cache of any GPU: writing and reading it takes earlier results out of the cache.
_FLUSH_BYTES = 256 << 20
_READ_THREADS, _READ_BLOCKS = 256, 4


class _Memory:
    """Device memory that is freed with its last array."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self.pointer = cuda.alloc(max(size_bytes, 1))
        weakref.finalize(self, _free, cuda, self.pointer)


def _free(cuda: Cuda, pointer: int) -> None:
    # After a kernel's fault every call fails, also this one, which nobody waits for.
    with suppress(IntsrError):
        cuda.free(pointer)


class GpuDevice:
    """The first NVIDIA GPU. Raises EngineMismatchError where there is none, or none that the kernels are for."""

    def __init__(self) -> None:
        self._cuda = cuda = open_cuda("cuda-python", None, "GPU", "gpu")
        self.emulated = False
        self.name, self.capability = cuda.device.name, cuda.device.capability
        self.multiprocessors, self.shared_bytes = cuda.device.multiprocessors, cuda.device.shared_bytes
        if self.capability < (8, 0):
            got = f"{self.name} of compute capability {self.capability[0]}.{self.capability[1]}"
            raise EngineMismatchError("GPU", got, "8.0 or newer")
        self._stream = cuda.create_stream()
        self._modules: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        memory = _Memory(self._cuda, math.prod(shape) * kind.itemsize)
        return DeviceArray(memory.pointer, tuple(shape), kind, memory, self._cuda.stream_address(self._stream))

    def upload(self, array: Array) -> DeviceArray:
        dense = np.ascontiguousarray(array)
        result = self.empty(dense.shape, dense.dtype)
        if dense.nbytes:
            self._cuda.upload(result.pointer, dense, self._stream)
        self.synchronize()
        return result

    def download(self, array: DeviceArray) -> Array:
        result = np.empty(array.shape, array.dtype)
        if result.nbytes:
            self._cuda.download(result, array.pointer, self._stream)
        self.synchronize()
        return result

    def synchronize(self) -> None:
        self._cuda.synchronize(self._stream)

    def run(self, plan: Plan) -> DeviceArray:
        for launch in plan.launches:
            self._launch(launch)
        # It may be an array of another library, which is written in this stream from now on.
        return replace(plan.output, stream=self._cuda.stream_address(self._stream))

    def _kernel(self, name: str) -> Any:
        if name not in self._kernels:
            source, params = KERNELS[name]
            if source not in self._modules:
                path = fatbin_path(source)
                if not path.is_file():
                    raise BuildError(path.name, "not built", fix="run: python -m intsr.kernels.build")
                self._modules[source] = self._cuda.load_module(path.read_bytes())
            self._kernels[name] = self._cuda.kernel(self._modules[source], name, params.places())
        return self._kernels[name]

    def _launch(self, launch: Launch) -> None:
        # Clusters are compiled into their kernels, as TensorRT cannot ask for one.
        kernel, params = self._kernel(launch.kernel), bytes(launch.params)
        self._cuda.launch_kernel(
            kernel,
            self._stream,
            grid=launch.grid,
            block=launch.block,
            shared_bytes=launch.shared_bytes,
            params=params,
        )

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Return the median over runs of one CUDA graph, whose launches cost little, from empty caches."""
        self.run(plan)
        self.synchronize()
        self._cuda.begin_capture(self._stream)
        self.run(plan)
        graph = self._cuda.end_capture(self._stream)
        try:
            return self._median(lambda: self._cuda.launch_graph(graph, self._stream), repeats)
        finally:
            self._cuda.destroy_graph(graph)

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        source, target = (self.empty((size_bytes,), np.uint8) for _ in range(2))
        return self._median(
            lambda: self._cuda.copy(target.pointer, source.pointer, size_bytes, self._stream), repeats
        )

    def _median(self, start: Callable[[], Any], repeats: int) -> float:
        cuda, stream = self._cuda, self._stream
        begin, end = cuda.create_event(), cuda.create_event()
        flush, blocks = self.empty((_FLUSH_BYTES,), np.uint8), self.multiprocessors * _READ_BLOCKS
        sums = self.empty((blocks * _READ_THREADS // 32,), np.uint32)
        params = ReadParams(words=flush, out=sums, count=_FLUSH_BYTES // 16)
        read = Launch("read_words", (blocks, 1, 1), _READ_THREADS, params)
        times = []
        for _ in range(repeats + 3):
            cuda.clear(flush.pointer, _FLUSH_BYTES, stream)
            # What was written is still in the cache: reading writes it back, before the clock starts.
            self._launch(read)
            cuda.record(begin, stream)
            start()
            cuda.record(end, stream)
            self.synchronize()
            times.append(cuda.elapsed_ms(begin, end))
        for event in (begin, end):
            cuda.destroy_event(event)
        return statistics.median(times[3:])
