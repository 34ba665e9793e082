"""One GPU's memory, streams, events, graphs and kernels, through cuda-python's driver API.

`Cuda` works in the device's primary context, where TensorRT, PyTorch and CuPy work, too. `pycuda.PyCuda` answers the
same calls through pycuda, for those who ask for it. `cuda.core` is not used: its launches take no struct of
parameters, which is what every kernel of ours takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from intsr.arrays import Array
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError

# name -> "module:class"; the first is the default.
CUDA_BACKENDS = {"cuda-python": "intsr.cuda.driver:Cuda", "pycuda": "intsr.cuda.pycuda:PyCuda"}
# Dynamic shared memory of a block that needs no permission.
PLAIN_SHARED_BYTES = 48 * 1024
# What cuda-bindings 13 are made for: the driver of any CUDA 13.
_NEEDED_VERSION, _NEEDED_DRIVER = 13000, "R580"
_NO_GPU_FIX = "run it on a machine with an NVIDIA GPU, or make an engine that runs here: intsr compile MODEL"
_NO_DRIVER = {
    *("CUDA_ERROR_NOT_INITIALIZED", "CUDA_ERROR_STUB_LIBRARY", "CUDA_ERROR_NO_DEVICE"),
    *("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"),
}
# (offset, bytes) of each parameter of a kernel inside the struct that holds them all; one where it takes the struct.
Places = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU."""

    index: int
    name: str
    # Compute capability, for example (8, 9).
    capability: tuple[int, int]
    total_bytes: int
    # The CUDA version that the driver is for, as text.
    driver_version: str
    # How many blocks of threads run at once, about.
    multiprocessors: int
    # The most dynamic shared memory that a block can have.
    shared_bytes: int = PLAIN_SHARED_BYTES

    def __str__(self) -> str:
        return f"cuda:{self.index} {self.name} (sm{self.capability[0]}{self.capability[1]})"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel, ready to be launched."""

    function: Any
    places: Places


class Cuda:
    """One device of this process. Streams, events, graphs and modules are the library's own objects.

    Every method raises OutOfMemoryError, or EngineMismatchError with CUDA's own reason; what waits for a kernel also
    for that kernel's fault, after which every call of this process to this GPU fails.
    """

    LIBRARY: ClassVar[str] = "cuda.bindings.driver"
    # Whether `begin_capture` and what follows it can be called.
    graphs: ClassVar[bool] = True

    def __init__(self, driver: Any, device: CudaDevice, where: object) -> None:
        self.device = device
        self._driver, self._where = driver, where
        # Retained for the rest of the process: other libraries live in it, and nothing of theirs may end with us.
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", device.index))
        self.make_current()

    @staticmethod
    def list_devices(driver: Any, where: object) -> list[CudaDevice]:
        """Return every visible GPU. Raises EngineMismatchError where there is no driver, or one that is too old."""
        try:
            version = _checked(driver, where, "cuDriverGetVersion")
            if 0 < version < _NEEDED_VERSION:
                expected = f"CUDA {version_text(_NEEDED_VERSION)} or newer (driver {_NEEDED_DRIVER})"
                got = f"the NVIDIA driver is for CUDA {version_text(version)}"
                raise EngineMismatchError(where, got, expected, "update the NVIDIA driver")
            _checked(driver, where, "cuInit", 0)
        except RuntimeError as error:
            # cuda-python's own, where the driver's library is not installed.
            raise no_driver(where, str(error).splitlines()[0]) from error
        count = _checked(driver, where, "cuDeviceGetCount")
        return [_device(driver, where, index, version) for index in range(count)]

    def _call(self, name: str, *arguments: Any) -> Any:
        return _checked(self._driver, self._where, name, *arguments)

    def make_current(self) -> None:
        """Make the device the calling thread's; before anything else there."""
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Leave the context, which is the process's, as it is."""

    # Memory

    def alloc(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._call("cuMemAlloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def alloc_pinned(self, size_bytes: int) -> Array:
        """Return page-locked host memory, (size_bytes,) uint8: copies from and to it run beside kernels."""
        address = int(self._call("cuMemAllocHost", size_bytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, memory: Array) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def upload(self, address: int, source: Array, stream: Any) -> None:
        """Copy from the host. source: contiguous; unchanged until the stream is through with it."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Array, address: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy within the device's memory, from address to address."""
        self._call("cuMemcpyDtoDAsync", target, source, size_bytes, stream)

    def clear(self, address: int, size_bytes: int, stream: Any) -> None:
        """Write zeros."""
        self._call("cuMemsetD8Async", address, 0, size_bytes, stream)

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    # Streams and events

    def create_stream(self) -> Any:
        # Not blocked by, and not blocking, what other libraries put into the default stream.
        return self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def destroy_stream(self, stream: Any) -> None:
        self._call("cuStreamDestroy", stream)

    def stream_address(self, stream: Any) -> int:
        """Return what TensorRT and `__cuda_array_interface__` call the stream."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cuStreamSynchronize", stream)

    def synchronize_device(self) -> None:
        """Wait for everything in the primary context, whoever put it there."""
        self._call("cuCtxSynchronize")

    def create_event(self) -> Any:
        # A waiting host thread sleeps: the cores have pictures to read and write.
        return self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC))

    def destroy_event(self, event: Any) -> None:
        """Destroy the event; what waits for it waits on."""
        self._call("cuEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is put into the stream from here on start after the event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def wait_for_foreign(self, stream: Any, foreign: int) -> None:
        """`wait` for all that another library put into its stream so far. foreign: that stream's address."""
        event = self.create_event()
        try:
            self.record(event, self._driver.CUstream(foreign))
            self.wait(stream, event)
        finally:
            self.destroy_event(event)

    def synchronize_event(self, event: Any) -> None:
        self._call("cuEventSynchronize", event)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the time between two events that are over."""
        return float(self._call("cuEventElapsedTime", start, end))

    # Graphs

    def begin_capture(self, stream: Any) -> None:
        # Thread-local: what other threads do meanwhile (an allocation, say) does not spoil it.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Return what was put into the stream since `begin_capture`, as a graph that can be launched."""
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def abandon_capture(self, stream: Any) -> None:
        """End a capture that failed; never raises."""
        status, graph = self._driver.cuStreamEndCapture(stream)
        if int(status) == 0 and graph is not None:
            self._driver.cuGraphDestroy(graph)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    # Kernels

    def load_module(self, image: bytes) -> Any:
        """Return compiled kernels (a fatbin), loaded until `unload_module`."""
        return self._call("cuModuleLoadData", image)

    def unload_module(self, module: Any) -> None:
        self._call("cuModuleUnload", module)

    def kernel(self, module: Any, name: str, places: Places) -> Kernel:
        """Return a kernel by name. Raises EngineMismatchError where its parameters lie at other places."""
        function = self._call("cuModuleGetFunction", module, name.encode())
        for index, (offset, size) in enumerate(places):
            found = tuple(int(value) for value in self._call("cuFuncGetParamInfo", function, index))
            if found != (offset, size):
                # It would read past their end.
                got = f"kernel {name} takes {found[1]} bytes of parameters at {found[0]}"
                raise EngineMismatchError(self._where, got, f"{size} bytes at {offset}", "build the kernels again")
        return Kernel(function, places)

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
        """Launch blocks along x, y and z. block: threads, along x. params: the struct. cluster: blocks, along x."""
        driver, function = self._driver, kernel.function
        if shared_bytes > PLAIN_SHARED_BYTES:
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, most, shared_bytes)
        # The driver copies the parameters before it returns.
        struct = ctypes.create_string_buffer(params, len(params))
        start = ctypes.addressof(struct)
        pointers = (ctypes.c_void_p * len(kernel.places))(*(start + offset for offset, _ in kernel.places))
        arguments = (ctypes.addressof(pointers), 0)
        if cluster == 1:
            self._call("cuLaunchKernel", function, *grid, block, 1, 1, shared_bytes, stream, *arguments)
            return
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attribute.value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes, config.hStream = shared_bytes, stream
        config.attrs, config.numAttrs = [attribute], 1
        self._call("cuLaunchKernelEx", config, function, *arguments)


def _checked(driver: Any, where: object, name: str, *arguments: Any) -> Any:
    """Call `name`, raise for its status, return the rest: None, one value or a tuple."""
    status, *values = getattr(driver, name)(*arguments)
    if int(status) == 0:
        return values[0] if len(values) == 1 else tuple(values) or None
    if status.name in _NO_DRIVER:
        raise no_driver(where, status.name)
    failed = out_of_memory if status.name == "CUDA_ERROR_OUT_OF_MEMORY" else cuda_failed
    raise failed(where, f"{name} reports {status.name}")


def cuda_failed(where: object, reason: str) -> EngineMismatchError:
    return EngineMismatchError(where, f"CUDA failed: {reason}", fix="see nvidia-smi for the state of the GPU")


def out_of_memory(where: object, reason: str) -> OutOfMemoryError:
    fix = "close other programs on the GPU, or compile the model with a smaller --tile"
    return OutOfMemoryError(where, f"the GPU is out of memory ({reason})", fix=fix)


def no_driver(where: object, reason: str) -> EngineMismatchError:
    return EngineMismatchError(where, f"no usable NVIDIA driver ({reason})", "an NVIDIA GPU", _NO_GPU_FIX)


def version_text(version: int) -> str:
    """12080 -> 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _device(driver: Any, where: object, index: int, version: int) -> CudaDevice:
    device = _checked(driver, where, "cuDeviceGet", index)

    def attribute(name: str) -> int:
        key = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_checked(driver, where, "cuDeviceGetAttribute", key, device))

    return CudaDevice(
        index,
        _checked(driver, where, "cuDeviceGetName", 256, device).split(b"\0")[0].decode(errors="replace"),
        (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        int(_checked(driver, where, "cuDeviceTotalMem", device)),
        version_text(version),
        attribute("MULTIPROCESSOR_COUNT"),
        attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
    )


def load_backend(backend: str, where: object, extra: str) -> tuple[type[Cuda], Any]:
    """Return the class and the library of one of `CUDA_BACKENDS`. extra: of this package, brings cuda-python.

    Raises EngineMismatchError where the library is missing, UsageError for another backend.
    """
    if backend not in CUDA_BACKENDS:
        raise UsageError("--cuda-backend", repr(backend), f"one of {', '.join(CUDA_BACKENDS)}")
    module, _, name = CUDA_BACKENDS[backend].partition(":")
    cuda: type[Cuda] = getattr(import_module(module), name)
    return cuda, import_library(cuda.LIBRARY, where, "pycuda" if backend == "pycuda" else extra)


def list_devices(backend: str, where: object, extra: str) -> list[CudaDevice]:
    """Return every visible GPU. Raises EngineMismatchError where the library or the driver is missing."""
    cuda, library = load_backend(backend, where, extra)
    return cuda.list_devices(library, where)


def open_cuda(backend: str, requested: str | None, where: object, extra: str) -> Cuda:
    """Open the device that was asked for. Raises EngineMismatchError, also where it is not there, UsageError."""
    cuda, library = load_backend(backend, where, extra)
    return cuda(library, pick_device(cuda.list_devices(library, where), requested, where), where)


def import_library(name: str, where: object, extra: str) -> Any:
    """Import a library. Raises EngineMismatchError naming the extra that brings it, also where it lacks its own."""
    package = name.partition(".")[0]
    fix = f'install it with: pip install "intsr[{extra}]"'
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise EngineMismatchError(where, f"{package} is not installed", fix=fix) from error
        # pycuda, for one, is linked to the driver's library.
        raise EngineMismatchError(where, f"{package} cannot be loaded ({error})", "its libraries", fix) from error


def pick_device(devices: Sequence[CudaDevice], requested: str | None, where: object) -> CudaDevice:
    """Return the device named `cuda:INDEX`, `cuda` or None for the first, or by a part of its name.

    Raises EngineMismatchError where there is none such.
    """
    if not devices:
        raise no_driver(where, "it sees no GPU")
    for device in devices:
        if requested in (None, "cuda", f"cuda:{device.index}"):
            return device
    for device in devices:
        if str(requested).lower() in device.name.lower():
            return device
    expected = f"one of {', '.join(map(str, devices))}"
    raise EngineMismatchError("--device", f"no GPU is {requested!r}", expected, "for example --device cuda:0")
