"""What the three networks of an open engine share on one GPU, freed in reverse order however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from math import prod
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.cuda.arrays import UNKNOWN_STREAM
from intsr.cuda.driver import Cuda
from intsr.cuda.graphs import GraphCache
from intsr.errors import IntsrError
from intsr.manifest import NetworkEntry
from intsr.runtime.backends.protocol import LayerTime, OfEntry, closed_error
from intsr.runtime.backends.tensorrt.kernel_cache import KernelCache
from intsr.runtime.backends.tensorrt.library import Library
from intsr.types import TensorInfo


def size_bytes_from_info(info: TensorInfo) -> int:
    return prod(info.shape) * np.dtype(info.dtype).itemsize


class Session:
    """The owner of the device's memory, streams, events, graphs and TensorRT's objects.

    `compute` is the stream that networks run in, one after the other, `copies` that of uploads and downloads.
    """

    def __init__(self, cuda: Cuda, library: Library, where: object) -> None:
        """Take over `cuda`. where: the engine's path, for errors."""
        self.cuda, self.library, self.where = cuda, library, where
        self._owned = ExitStack()
        self._owned.callback(cuda.close)
        self._closed = False
        try:
            self._free_bytes = cuda.memory_info()[0]
            self.compute, self.copies = (self._owning(cuda.create_stream(), cuda.destroy_stream) for _ in range(2))
            self._owned.callback(self._forget_streams)
        except BaseException:
            self._owned.close()
            raise

    def _forget_streams(self) -> None:
        # pycuda frees what nobody refers to any more: before the context goes, and not when this object does.
        self.compute = self.copies = None

    def _owning(self, thing: Any, free: Callable[[Any], None]) -> Any:
        self._owned.callback(free, thing)
        return thing

    def alloc(self, size_bytes: int) -> int:
        """Take device memory until `close`. Returns its address."""
        # An empty arena is possible; CUDA answers an allocation of nothing with a null address.
        return int(self._owning(self.cuda.alloc(max(size_bytes, 1)), self.cuda.free))

    def alloc_pinned(self, info: TensorInfo) -> Array:
        """Return a page-locked host array for the tensor, until `close`."""
        memory: Array = self._owning(self.cuda.alloc_pinned(size_bytes_from_info(info)), self.cuda.free_pinned)
        return memory.view(info.dtype).reshape(info.shape)

    def create_event(self) -> Any:
        return self._owning(self.cuda.create_event(), self.cuda.destroy_event)

    def on_close(self, function: Callable[[], None]) -> None:
        """Have it called on `close`, before what was there earlier is freed."""
        self._owned.callback(function)

    @property
    def is_open(self) -> bool:
        return not self._closed

    def enter(self) -> None:
        """Make the device this thread's; to be called before anything runs. Raises UsageError after `close`."""
        if self._closed:
            raise closed_error(self.where)
        self.cuda.make_current()

    def wait_for_others(self, streams: Iterable[int | None]) -> None:
        """Have what other libraries put into `streams` so far come before what networks do from here on.

        None: nothing is to be waited for. UNKNOWN_STREAM: the host waits for the whole device.
        """
        foreign = set(streams) - {None, self.cuda.stream_address(self.compute)}
        if UNKNOWN_STREAM in foreign:
            self.cuda.synchronize_device()
            return
        for stream in foreign:
            if stream is not None:
                self.cuda.wait_for_foreign(self.compute, stream)

    def used_bytes(self) -> int:
        """Return the device memory taken since the session was opened, by this and by any other process."""
        return max(self._free_bytes - self.cuda.memory_info()[0], 0)

    def drain(self) -> None:
        """Wait until nothing of this session runs; for use after errors, which it leaves to be reported."""
        if self._closed:
            return
        self.cuda.make_current()
        for stream in (self.compute, self.copies):
            with suppress(IntsrError):
                self.cuda.synchronize(stream)

    def close(self) -> None:
        """Free everything; a second time does nothing."""
        self.drain()
        self._closed = True
        self._owned.close()


class Stage(OfEntry):
    """One network's execution context, its memory the session's shared arena."""

    def __init__(
        self, session: Session, entry: NetworkEntry, context: Any, profile: bool, kernels: KernelCache | None = None
    ) -> None:
        self.name, self.entry = entry.name, entry
        self.layer_times: list[LayerTime] = []
        self._session, self._context, self._kernels = session, context, kernels
        self._graphs = GraphCache(session.cuda, f"{session.where}: {entry.name}")
        if profile:
            context.profiler = self._profiler = _make_profiler(session.library.trt, self.layer_times)
            # A replayed graph reports nothing.
            self._graphs.active = False
        session.on_close(self._release)

    @property
    def graphs(self) -> bool:
        return self._graphs.active

    def run(self, *addresses: int) -> None:
        """Into the compute stream. addresses: of the entry's inputs, then of its outputs.

        Raises EngineMismatchError, OutOfMemoryError.
        """
        self.layer_times.clear()

        def enqueue(stream: Any) -> None:
            self._enqueue(addresses, stream)

        # Shapes are always the same.
        self._graphs.run(addresses, enqueue, self._session.compute)
        if self._kernels is not None:
            # Here the first run has compiled all that there is to compile, and the GPU still computes.
            self._kernels.save()

    def _enqueue(self, addresses: tuple[int, ...], stream: Any) -> None:
        session = self._session
        for info, address in zip((*self.entry.inputs, *self.entry.outputs), addresses, strict=True):
            if not self._context.set_tensor_address(info.name, address):
                raise session.library.error(session.where, f"setting the address of {self.name}'s {info.name}")
        if not self._context.execute_async_v3(session.cuda.stream_address(stream)):
            raise session.library.error(session.where, f"running the {self.name}")

    def _release(self) -> None:
        self._graphs.close()
        self._context = None
        # Behind the context, which looks into it.
        self._kernels = None


class OnDevice:
    """What a backend can tell of the networks that it has on a GPU."""

    _session: Session
    _stages: Sequence[Stage]

    def layer_times_ms(self) -> dict[str, list[LayerTime]]:
        """As of `Backend`."""
        return {stage.name: list(stage.layer_times) for stage in self._stages}

    def uses_graphs(self) -> bool:
        """As of `Backend`."""
        return all(stage.graphs for stage in self._stages)

    def device_bytes(self) -> int:
        """Return what plans, arena, buffers and libraries have taken since the engine was opened."""
        self._session.enter()
        return self._session.used_bytes()


def _make_profiler(trt: Any, times: list[LayerTime]) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.append(LayerTime(layer_name, "", "", float(ms)))

    return Profiler()
