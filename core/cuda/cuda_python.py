"""CUDA through cuda-python (`cuda.bindings.runtime`), NVIDIA's own bindings; it works in the primary context.

Kernels go through `cuda.bindings.driver`: the runtime's bindings cannot launch any. The primary context is current
there too, and a stream of one is a stream of the other.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.cuda import driver as cuda_interface
from intsr.cuda.driver import CudaDevice, no_driver
from intsr.errors import EngineMismatchError, IntsrError, OutOfMemoryError

LIBRARY = "cuda.bindings.runtime"
DRIVER = "cuda.bindings.driver"
_NO_DRIVER = (
    "cudaErrorInsufficientDriver",
    "cudaErrorNoDevice",
    "cudaErrorSystemDriverMismatch",
    "cudaErrorStubLibrary",
    "cudaErrorCompatNotSupportedOnDevice",
    "cudaErrorInitializationError",
)
# What the CUDA runtime inside cuda-bindings 13 runs on: the driver of any CUDA 13.
_NEEDED_VERSION, _NEEDED_DRIVER = 13000, "R580"
_BLOCKING_SYNC, _GRAPH_FLAGS = 1, 0


def checked(runtime: Any, where: object, name: str, *arguments: Any) -> Any:
    """Call `name`, raise for its status, return the rest: None, one value or a tuple.

    runtime: or the driver's bindings. Raises OutOfMemoryError, EngineMismatchError.
    """
    status, *values = getattr(runtime, name)(*arguments)
    if int(status) != 0:
        raise _error(status.name, f"{name} reports {status.name}", where)
    return values[0] if len(values) == 1 else tuple(values) or None


def _error(status: str, text: str, where: object) -> IntsrError:
    if status in ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"):
        fix = "close other programs on the GPU, or compile the model with a smaller --tile"
        return OutOfMemoryError(where, f"the GPU is out of memory ({text})", fix=fix)
    if status == "cudaErrorInsufficientDriver" and 0 < (version := _driver_version()) < _NEEDED_VERSION:
        expected = f"CUDA {_dotted(_NEEDED_VERSION)} or newer (driver {_NEEDED_DRIVER})"
        got = f"the NVIDIA driver is for CUDA {_dotted(version)}"
        return EngineMismatchError(where, got, expected, "update the NVIDIA driver")
    if status in _NO_DRIVER:
        return no_driver(where, status)
    return EngineMismatchError(where, f"CUDA failed: {text}", fix="see nvidia-smi for the state of the GPU")


def _driver_version() -> int:
    """What the driver itself says, 12080 for CUDA 12.8; 0 where there is none.

    CUDA's runtime gives a driver that is too old and one that is missing the same status.
    """
    version = ctypes.c_int()
    try:
        status = _load_driver().cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value if status == 0 else 0


def _load_driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def list_devices(runtime: Any, where: object) -> list[CudaDevice]:
    """Every visible GPU. Raises EngineMismatchError where there is no driver."""
    count = checked(runtime, where, "cudaGetDeviceCount")
    driver = _dotted(checked(runtime, where, "cudaDriverGetVersion"))
    return [_device(runtime, where, index, driver) for index in range(count)]


def _device(runtime: Any, where: object, index: int, driver: str) -> CudaDevice:
    properties = checked(runtime, where, "cudaGetDeviceProperties", index)
    name = properties.name.decode(errors="replace")
    capability = (int(properties.major), int(properties.minor))
    return CudaDevice(
        index, name, capability, int(properties.totalGlobalMem), driver, int(properties.multiProcessorCount)
    )


def open_device(runtime: Any, device: CudaDevice, where: object) -> CudaPython:
    """Raises EngineMismatchError, OutOfMemoryError."""
    return CudaPython(runtime, device, where)


class CudaPython:
    """`cuda_interface.Cuda` over cuda-python. Streams, events and graphs are cuda-python's own objects."""

    graphs = True

    def __init__(self, runtime: Any, device: CudaDevice, where: object) -> None:
        self.device = device
        self._runtime, self._where = runtime, where
        self._driver: Any = None
        # Addresses of the arrays that are allocated: an array does not own its memory.
        self._pinned: set[int] = set()
        self.make_current()

    def _call(self, name: str, *arguments: Any) -> Any:
        return checked(self._runtime, self._where, name, *arguments)

    def make_current(self) -> None:
        self._call("cudaSetDevice", self.device.index)

    def alloc(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def alloc_pinned(self, size_bytes: int) -> Array:
        address = int(self._call("cudaMallocHost", size_bytes))
        self._pinned.add(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, memory: Array) -> None:
        address = memory.ctypes.data
        self._pinned.remove(address)
        self._call("cudaFreeHost", address)

    def upload(self, address: int, source: Array, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def download(self, target: Array, address: int, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def clear(self, address: int, size_bytes: int, stream: Any) -> None:
        self._call("cudaMemsetAsync", address, 0, size_bytes, stream)

    def create_stream(self) -> Any:
        # Not blocked by, and not blocking, what other libraries put into the default stream.
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def stream_address(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> Any:
        # A waiting host thread sleeps: the cores have pictures to read and write.
        return self._call("cudaEventCreateWithFlags", _BLOCKING_SYNC)

    def destroy_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    def wait_for_foreign(self, stream: Any, foreign: int) -> None:
        event = self.create_event()
        try:
            self.record(event, self._runtime.cudaStream_t(foreign))
            self.wait(stream, event)
        finally:
            # CUDA frees it once the wait is over.
            self.destroy_event(event)

    def synchronize_device(self) -> None:
        self._call("cudaDeviceSynchronize")

    def begin_capture(self, stream: Any) -> None:
        # Thread-local: what other threads do meanwhile (an allocation, say) does not spoil it.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, _GRAPH_FLAGS)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: Any) -> None:
        status, graph = self._runtime.cudaStreamEndCapture(stream)
        if status == self._runtime.cudaError_t.cudaSuccess and graph is not None:
            self._runtime.cudaGraphDestroy(graph)
        # Else the next call would report this capture's error.
        self._runtime.cudaGetLastError()

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def load_module(self, image: bytes) -> Any:
        if self._driver is None:
            self._driver = cuda_interface.import_library(DRIVER, self._where, "gpu")
        return checked(self._driver, self._where, "cuModuleLoadData", image)

    def unload_module(self, module: Any) -> None:
        checked(self._driver, self._where, "cuModuleUnload", module)

    def kernel(self, module: Any, name: str, params_bytes: int) -> Any:
        kernel = checked(self._driver, self._where, "cuModuleGetFunction", module, name.encode())
        offset, found = (int(value) for value in checked(self._driver, self._where, "cuFuncGetParamInfo", kernel, 0))
        if (offset, found) != (0, params_bytes):
            # It would read past their end.
            got = f"kernel {name} takes {found} bytes of parameters"
            raise EngineMismatchError(self._where, got, f"{params_bytes} bytes", "build the kernels again")
        return kernel

    def launch_kernel(
        self, kernel: Any, grid: tuple[int, int, int], block: int, shared_bytes: int, params: bytes, stream: Any
    ) -> None:
        # The driver copies the parameters before it returns.
        struct = ctypes.create_string_buffer(params, len(params))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(struct))
        sizes = (*grid, block, 1, 1, shared_bytes)
        arguments = (kernel, *sizes, stream, ctypes.addressof(pointers), 0)
        checked(self._driver, self._where, "cuLaunchKernel", *arguments)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """The primary context is the process's: other libraries may live in it."""
