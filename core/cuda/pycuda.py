"""CUDA through pycuda, for those who have it: it retains the device's primary context, which TensorRT works in, too.

pycuda has no graph capture: kernels are launched one by one. Objects of its own are freed with their last reference.
"""

from __future__ import annotations

from typing import Any, ClassVar

from intsr.arrays import Array
from intsr.cuda.driver import Cuda, CudaDevice, Places, cuda_failed, no_driver, out_of_memory, version_text
from intsr.errors import UsageError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PyCuda(Cuda):
    """`Cuda` over pycuda, but for graphs, clusters and more than 48 KiB of shared memory."""

    LIBRARY: ClassVar[str] = "pycuda.driver"
    graphs: ClassVar[bool] = False

    def __init__(self, driver: Any, device: CudaDevice, where: object) -> None:
        self.device = device
        self._driver, self._where = driver, where
        # pycuda frees memory when its object goes: these keep it.
        self._allocations: dict[int, Any] = {}
        self._context = self._do(driver.Device(device.index).retain_primary_context)
        self._do(self._context.push)

    @staticmethod
    def list_devices(driver: Any, where: object) -> list[CudaDevice]:
        try:
            driver.init()
            version = version_text(driver.get_driver_version())
            devices = [driver.Device(index) for index in range(driver.Device.count())]
        except driver.Error as error:
            raise no_driver(where, str(error)) from error
        multiprocessors = driver.device_attribute.MULTIPROCESSOR_COUNT
        return [
            CudaDevice(
                index,
                device.name(),
                tuple(device.compute_capability()),
                device.total_memory(),
                version,
                device.get_attribute(multiprocessors),
            )
            for index, device in enumerate(devices)
        ]

    def _do(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except self._driver.MemoryError as error:
            raise out_of_memory(self._where, str(error)) from error
        except self._driver.Error as error:
            raise cuda_failed(self._where, str(error)) from error

    def make_current(self) -> None:
        # Contexts are a stack a thread. Only a thread that has none, or another's on top, needs a push.
        if self._driver.Context.get_current() != self._context:
            self._do(self._context.push)

    def close(self) -> None:
        self._do(self._context.pop)
        self._do(self._context.detach)

    def alloc(self, size_bytes: int) -> int:
        allocation = self._do(self._driver.mem_alloc, size_bytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._do(self._allocations.pop(address).free)

    def alloc_pinned(self, size_bytes: int) -> Array:
        memory: Array = self._do(self._driver.pagelocked_empty, size_bytes, "uint8")
        self._allocations[memory.ctypes.data] = memory.base
        return memory

    def free_pinned(self, memory: Array) -> None:
        self.free(memory.ctypes.data)

    def upload(self, address: int, source: Array, stream: Any) -> None:
        self._do(self._driver.memcpy_htod_async, address, source, stream)

    def download(self, target: Array, address: int, stream: Any) -> None:
        self._do(self._driver.memcpy_dtoh_async, target, address, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        self._do(self._driver.memcpy_dtod_async, target, source, size_bytes, stream)

    def clear(self, address: int, size_bytes: int, stream: Any) -> None:
        self._do(self._driver.memset_d8_async, address, 0, size_bytes, stream)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._do(self._driver.mem_get_info)
        return int(free), int(total)

    def create_stream(self) -> Any:
        return self._do(self._driver.Stream, _NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """Nothing: pycuda does when the object goes."""

    def stream_address(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        self._do(stream.synchronize)

    def synchronize_device(self) -> None:
        self._do(self._driver.Context.synchronize)

    def create_event(self) -> Any:
        return self._do(self._driver.Event, self._driver.event_flags.BLOCKING_SYNC)

    def destroy_event(self, event: Any) -> None:
        """Nothing: pycuda does when the object goes."""

    def record(self, event: Any, stream: Any) -> None:
        self._do(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._do(stream.wait_for_event, event)

    def wait_for_foreign(self, stream: Any, foreign: int) -> None:
        # pycuda makes no stream of an address: wait for the whole context instead.
        self.synchronize_device()

    def synchronize_event(self, event: Any) -> None:
        self._do(event.synchronize)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._do(start.time_till, end))

    def load_module(self, image: bytes) -> Any:
        return self._do(self._driver.module_from_buffer, image)

    def unload_module(self, module: Any) -> None:
        """Nothing: pycuda does when the object goes."""

    def kernel(self, module: Any, name: str, places: Places) -> Any:
        # One parameter, a struct: so many bytes.
        ((_, size),) = places
        return self._do(self._do(module.get_function, name).prepare, [f"{size}s"])

    def launch_kernel(
        self,
        kernel: Any,
        stream: Any,
        *,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        params: bytes,
        cluster: int = 1,
    ) -> None:
        if cluster > 1:
            raise UsageError("pycuda", "a launch of clusters", "cuda-python")
        launch = kernel.prepared_async_call
        self._do(launch, grid, (block, 1, 1), stream, params, shared_size=shared_bytes)
