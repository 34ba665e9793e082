"""The `tensorrt` and `tensorrt-rtx` targets: serialized plans on an NVIDIA GPU.

Nothing of a plan reaches TensorRT before its bundle's hashes, its own header, the library's version and the GPU's
architecture are checked. The three execution contexts share one arena as large as the largest needs: they never run
at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray, device_array
from intsr.cuda.driver import Cuda, open_cuda
from intsr.errors import UsageError
from intsr.runtime.backends.protocol import LayerTime, PicturePipeline, SessionOptions, checked_input
from intsr.runtime.backends.tensorrt.kernel_cache import KernelCache, open_kernel_cache
from intsr.runtime.backends.tensorrt.library import (
    EXTRAS,
    check_tensors,
    create_context,
    deserialize,
    give_memory,
    load_library,
    make_runtime,
)
from intsr.runtime.backends.tensorrt.plan_header import check_device, check_plan, check_plugins
from intsr.runtime.backends.tensorrt.session import Session, Stage
from intsr.runtime.backends.tensorrt.tile_pipeline import Pipeline
from intsr.types import TensorInfo

if TYPE_CHECKING:
    from intsr.bundle import Bundle


class TensorRTNetwork:
    """One of an engine's three networks, which are one unit on the device: closing one closes all.

    pipeline: all three over many tiles at once. picture_pipeline: the same with all that is around them on the
    device, too; None where it cannot be. precision: of what is not integer, as the plan was built.
    """

    def __init__(
        self,
        session: Session,
        stage: Stage,
        pipeline: Pipeline,
        picture_pipeline: PicturePipeline | None,
        index: int,
        precision: str,
    ) -> None:
        self.input, self.output = stage.input, stage.output
        self.precision, self.pipeline, self.picture_pipeline = precision, pipeline, picture_pipeline
        self._session, self._stage = session, stage
        self._input_address, self._output_address = pipeline.addresses[index]

    @property
    def device(self) -> str:
        return str(self._session.cuda.device)

    @property
    def graphs(self) -> bool:
        """Whether it runs as a CUDA graph."""
        return self._stage.graphs

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
        source = _checked_array(x, self.input, writable=False)
        target = _checked_array(result, self.output, writable=True)
        session.wait_for_others((source.stream, target.stream))
        self._stage.run(source.pointer, target.pointer)
        return result

    def synchronize(self) -> None:
        """Wait for everything that was put into the compute stream."""
        self._session.enter()
        self._session.cuda.synchronize(self._session.compute)

    def layer_times_ms(self) -> list[LayerTime]:
        """Of the last `run`, in execution order, where the engine was opened with `profile`."""
        return list(self._stage.layer_times)

    def device_bytes(self) -> int:
        """Device memory taken since the engine was opened: plans, arena, buffers and what libraries load."""
        self._session.enter()
        return self._session.used_bytes()

    def close(self) -> None:
        self._session.close()


def _checked_array(value: Any, info: TensorInfo, writable: bool) -> DeviceArray:
    return device_array(value, f"array for {info.name}", info.dtype, info.shape, writable)


def open_networks(bundle: Bundle, options: SessionOptions) -> list[TensorRTNetwork]:
    """Raises UsageError, EngineMismatchError, OutOfMemoryError; whatever was taken of the device is freed then."""
    manifest, where = bundle.manifest, bundle.path
    if options.precision != "auto":
        raise UsageError("--precision", options.precision, f"auto: an engine of target {manifest.target} has its own")
    for entry in manifest.networks:
        with bundle.member(entry.member) as plan:
            check_plan(plan, manifest, f"{where}:{entry.member}")
    check_plugins(manifest, where)
    cuda = open_cuda(options.cuda_backend, options.device, where, EXTRAS[manifest.target])
    try:
        check_device(manifest, cuda.device, where)
        library = load_library(manifest.target, where)
    except BaseException:
        cuda.close()
        raise
    return _open_on_device(bundle, options, cuda, Session(cuda, library, where))


def _open_on_device(bundle: Bundle, options: SessionOptions, cuda: Cuda, session: Session) -> list[TensorRTNetwork]:
    # Brings `intsr.kernels`, which no other target needs.
    from intsr.runtime.backends.tensorrt.picture_pipeline import open_device_picture

    try:
        stages = _make_stages(bundle, options, session)
        pipeline = Pipeline(session, stages)
        pictures = open_device_picture(session, stages, pipeline.addresses)
        precision = bundle.manifest.precision
        return [TensorRTNetwork(session, stage, pipeline, pictures, i, precision) for i, stage in enumerate(stages)]
    except BaseException:
        session.close()
        raise


def _make_stages(bundle: Bundle, options: SessionOptions, session: Session) -> list[Stage]:
    """Deserialize the plans and give their contexts one arena."""
    library, manifest, where = session.library, bundle.manifest, session.where
    runtime, entries = make_runtime(library, where), manifest.networks
    runtimes, engines, caches = [runtime], list[Any](), list[KernelCache | None]()
    # TensorRT's objects go when the last reference to them does: contexts before the caches that they look into and
    # before engines, engines before the runtime.
    session.on_close(runtimes.clear)
    session.on_close(engines.clear)
    session.on_close(caches.clear)
    for entry in entries:
        with bundle.member(entry.member) as plan:
            engines.append(deserialize(library, runtime, plan, f"{where}:{entry.member}"))
        check_tensors(library, engines[-1], entry, where)
    arena_bytes = max(engine.device_memory_size_v2 for engine in engines)
    arena = session.alloc(arena_bytes)
    stages = []
    for entry, engine in zip(entries, engines, strict=True):
        sha256 = manifest.sha256[entry.member]
        caches.append(open_kernel_cache(library, engine, sha256, session.cuda.device, where))
        context = create_context(library, engine, where, caches[-1].config if caches[-1] else None)
        give_memory(library, context, arena, arena_bytes, f"{where}: {entry.name}")
        stages.append(Stage(session, entry, context, options.profile, caches[-1]))
    return stages
