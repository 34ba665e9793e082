"""The `tensorrt` and `tensorrt-rtx` targets: serialized plans on an NVIDIA GPU.

Nothing of a plan reaches TensorRT before its bundle's hashes, its own header, the library's version and the GPU's
architecture are checked. The three execution contexts share one arena as large as the largest needs: they never run
at the same time.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray, device_array
from intsr.cuda.driver import open_cuda
from intsr.errors import UsageError
from intsr.runtime.backends.protocol import Backend, SessionOptions, checked_input
from intsr.runtime.backends.tensorrt.kernel_cache import KernelCache, open_kernel_cache
from intsr.runtime.backends.tensorrt.library import (
    check_tensors,
    create_context,
    deserialize,
    give_memory,
    load_tensorrt,
    make_runtime,
)
from intsr.runtime.backends.tensorrt.plan_header import check_device, check_plan, check_plugins
from intsr.runtime.backends.tensorrt.session import OnDevice, Session, Stage
from intsr.runtime.backends.tensorrt.tile_pipeline import Pipeline
from intsr.runtime.backends.tensorrt.video import TensorRTVideoBackend
from intsr.targets import target_from_name

if TYPE_CHECKING:
    from intsr.bundle import Bundle


class TensorRTNetwork:
    """One of an engine's networks, which are one unit on the device: closing one closes all."""

    def __init__(self, session: Session, stage: Stage, addresses: tuple[int, int]) -> None:
        """addresses: of the buffers of its input and output."""
        self.input, self.output = stage.input, stage.output
        self._session, self._stage = session, stage
        self._input_address, self._output_address = addresses

    def run(self, x: Array) -> Array:
        """x: `input.shape`, any float dtype, on the host -> `output.shape`, `output.dtype`, on the host."""
        session, cuda, stream = self._session, self._session.cuda, self._session.compute
        session.enter()
        x = checked_input(x, self.input)
        result = np.empty(self.output.shape, self.output.dtype)
        try:
            cuda.upload(self._input_address, x, stream)
            self._stage.run(self._input_address, self._output_address)
            cuda.download(result, self._output_address, stream)
            cuda.synchronize(stream)
        except BaseException:
            # Neither x nor the result may go while a copy is at them.
            session.drain()
            raise
        return result

    def run_on_device(self, x: Any, out: Any = None) -> Any:
        """x, out: any arrays with `__cuda_array_interface__`, of the network's shapes and dtypes, contiguous.

        Returns `out`, or the engine's own buffer, which the next run overwrites. It returns before the GPU is done:
        whoever reads the result does so behind the stream that it names, or after `synchronize`. Keep x and out until
        then. Arrays that name no stream (PyTorch's) are waited for with the whole device. A pair of addresses that
        comes a second time is captured as a graph. Raises UsageError, EngineMismatchError.
        """
        session = self._session
        session.enter()
        own_stream = session.cuda.stream_address(session.compute)
        result = out
        if out is None:
            dtype = np.dtype(self.output.dtype)
            result = DeviceArray(self._output_address, self.output.shape, dtype, stream=own_stream)
        source, target = (
            device_array(value, f"array for {info.name}", info.dtype, info.shape, writable)
            for value, info, writable in ((x, self.input, False), (result, self.output, True))
        )
        session.wait_for_others((source.stream, target.stream))
        self._stage.run(source.pointer, target.pointer)
        return result

    def synchronize(self) -> None:
        """Wait for everything that was put into the compute stream."""
        self._session.enter()
        self._session.cuda.synchronize(self._session.compute)

    def close(self) -> None:
        self._session.close()


class TensorRTBackend(OnDevice, Backend):
    """All networks of an engine on one GPU, in one session."""

    def __init__(self, session: Session, stages: list[Stage], precision: str) -> None:
        """precision: as the plans were built."""
        # Brings `intsr.kernels`, which no other target needs.
        from intsr.runtime.backends.tensorrt.picture_pipeline import open_device_picture

        pipeline = Pipeline(session, stages)
        Backend.__init__(
            self,
            [TensorRTNetwork(session, *each) for each in zip(stages, pipeline.addresses, strict=True)],
            precision,
            tuple(stage.name for stage in stages),
        )
        self._session, self._stages = session, stages
        self.tile_pipeline = pipeline
        self.picture_pipeline = open_device_picture(session, stages, pipeline.addresses)
        self.device = str(session.cuda.device)


def load_library() -> None:
    """Nothing is loaded before its device is chosen."""


def open_backend(bundle: Bundle, options: SessionOptions) -> TensorRTBackend | TensorRTVideoBackend:
    """Raises UsageError, EngineMismatchError, OutOfMemoryError; whatever was taken of the device is freed then."""
    manifest, where = bundle.manifest, bundle.path
    if options.precision != "auto":
        raise UsageError("--precision", options.precision, f"auto: an engine of target {manifest.target} has its own")
    for entry in manifest.networks:
        with bundle.member(entry.member) as plan:
            check_plan(plan, manifest, f"{where}:{entry.member}")
    check_plugins(manifest, where)
    cuda = open_cuda(options.cuda_backend, options.device, where, target_from_name(manifest.target).extra)
    with ExitStack() as opened:
        opened.callback(cuda.close)
        check_device(manifest, cuda.device, where)
        library = load_tensorrt(manifest.target, where)
        # From here on it is the session's.
        opened.pop_all()
        session = Session(cuda, library, where)
        opened.callback(session.close)
        stages = _make_stages(bundle, options, session)
        backend = (
            TensorRTBackend(session, stages, manifest.precision)
            if manifest.chunk is None
            else TensorRTVideoBackend(session, stages, manifest.chunk, manifest.precision)
        )
        opened.pop_all()
    return backend


def _make_stages(bundle: Bundle, options: SessionOptions, session: Session) -> list[Stage]:
    """Deserialize the plans and give their contexts one arena."""
    library, manifest, where = session.library, bundle.manifest, session.where
    runtime, entries = make_runtime(library, where), manifest.networks
    runtimes, engines, caches = [runtime], list[Any](), list[KernelCache | None]()
    # TensorRT's objects go when the last reference to them does: contexts before the caches that they look into and
    # before engines, engines before the runtime.
    for held in (runtimes, engines, caches):
        session.on_close(held.clear)
    for entry in entries:
        with bundle.member(entry.member) as plan:
            engines.append(deserialize(library, runtime, plan, f"{where}:{entry.member}"))
        check_tensors(library, engines[-1], entry, where)
    arena_bytes = max(engine.device_memory_size_v2 for engine in engines)
    arena = session.alloc(arena_bytes)
    stages = []
    for entry, engine in zip(entries, engines, strict=True):
        sha256 = manifest.sha256[entry.member]
        device = session.cuda.device
        caches.append(open_kernel_cache(library, engine, sha256, device, where) if options.cache else None)
        context = create_context(library, engine, where, caches[-1].config if caches[-1] else None)
        give_memory(library, context, arena, arena_bytes, f"{where}: {entry.name}")
        stages.append(Stage(session, entry, context, options.profile, caches[-1]))
    return stages
