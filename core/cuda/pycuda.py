"""CUDA through pycuda, for those who have it: it retains the device's primary context, which TensorRT works in too.

pycuda has no graph capture: kernels are launched one by one.
"""

from __future__ import annotations

from typing import Any

from intsr.arrays import Array
from intsr.cuda.driver import CudaDevice, no_driver
from intsr.errors import EngineMismatchError, IntsrError, OutOfMemoryError

LIBRARY = "pycuda.driver"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def list_devices(driver: Any, where: object) -> list[CudaDevice]:
    """Every visible GPU. Raises EngineMismatchError where there is no driver."""
    try:
        driver.init()
        version = driver.get_driver_version()
        devices = [driver.Device(index) for index in range(driver.Device.count())]
    except driver.Error as error:
        raise no_driver(where, str(error)) from error
    text = f"{version // 1000}.{version % 1000 // 10}"
    return [
        CudaDevice(
            index,
            device.name(),
            tuple(device.compute_capability()),
            device.total_memory(),
            text,
            device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT),
        )
        for index, device in enumerate(devices)
    ]


def open_device(driver: Any, device: CudaDevice, where: object) -> PyCuda:
    """Raises EngineMismatchError, OutOfMemoryError."""
    return PyCuda(driver, device, where)


class PyCuda:
    """`cuda_interface.Cuda` over pycuda. Streams and events are pycuda's own objects."""

    graphs = False

    def __init__(self, driver: Any, device: CudaDevice, where: object) -> None:
        self.device = device
        self._driver, self._where = driver, where
        # pycuda frees memory when its object goes: these keep it.
        self._allocations: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._context = self._do(driver.Device(device.index).retain_primary_context)
        self._do(self._context.push)

    def _do(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> IntsrError:
        if isinstance(error, self._driver.MemoryError):
            fix = "close other programs on the GPU, or compile the model with a smaller --tile"
            return OutOfMemoryError(self._where, f"the GPU is out of memory ({error})", fix=fix)
        return EngineMismatchError(
            self._where, f"CUDA failed: {error}", fix="see nvidia-smi for the state of the GPU"
        )

    def make_current(self) -> None:
        # Contexts are a stack a thread. Only a thread that has none, or another's on top, needs a push.
        if self._driver.Context.get_current() != self._context:
            self._do(self._context.push)

    def alloc(self, size_bytes: int) -> int:
        allocation = self._do(self._driver.mem_alloc, size_bytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._do(self._allocations.pop(address).free)

    def alloc_pinned(self, size_bytes: int) -> Array:
        memory: Array = self._do(self._driver.pagelocked_empty, size_bytes, "uint8")
        self._pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: Array) -> None:
        self._do(self._pinned.pop(memory.ctypes.data).base.free)

    def upload(self, address: int, source: Array, stream: Any) -> None:
        self._do(self._driver.memcpy_htod_async, address, source, stream)

    def download(self, target: Array, address: int, stream: Any) -> None:
        self._do(self._driver.memcpy_dtoh_async, target, address, stream)

    def clear(self, address: int, size_bytes: int, stream: Any) -> None:
        self._do(self._driver.memset_d8_async, address, 0, size_bytes, stream)

    def create_stream(self) -> Any:
        return self._do(self._driver.Stream, _NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """pycuda does when the object goes."""

    def stream_address(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        self._do(stream.synchronize)

    def create_event(self) -> Any:
        return self._do(self._driver.Event, self._driver.event_flags.BLOCKING_SYNC)

    def destroy_event(self, event: Any) -> None:
        """pycuda does when the object goes."""

    def record(self, event: Any, stream: Any) -> None:
        self._do(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._do(stream.wait_for_event, event)

    def synchronize_event(self, event: Any) -> None:
        self._do(event.synchronize)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._do(start.time_till, end))

    def wait_for_foreign(self, stream: Any, foreign: int) -> None:
        # pycuda makes no stream of an address: wait for the whole context instead.
        self.synchronize_device()

    def synchronize_device(self) -> None:
        # The primary context, in which other libraries work, too.
        self._do(self._driver.Context.synchronize)

    def begin_capture(self, stream: Any) -> None:
        raise NotImplementedError("pycuda captures no graphs; see `graphs`")

    end_capture = abandon_capture = destroy_graph = begin_capture

    def launch(self, graph: Any, stream: Any) -> None:
        raise NotImplementedError("pycuda captures no graphs; see `graphs`")

    def load_module(self, image: bytes) -> Any:
        return self._do(self._driver.module_from_buffer, image)

    def unload_module(self, module: Any) -> None:
        """pycuda does when the object goes."""

    def kernel(self, module: Any, name: str, params_bytes: int) -> Any:
        # One parameter, a struct: so many bytes.
        return self._do(self._do(module.get_function, name).prepare, [f"{params_bytes}s"])

    def launch_kernel(
        self, kernel: Any, grid: tuple[int, int, int], block: int, shared_bytes: int, params: bytes, stream: Any
    ) -> None:
        def launch() -> None:
            kernel.prepared_async_call(grid, (block, 1, 1), stream, params, shared_size=shared_bytes)

        self._do(launch)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._do(self._driver.mem_get_info)
        return int(free), int(total)

    def close(self) -> None:
        self._do(self._context.pop)
        self._do(self._context.detach)
