"""cuda-python's driver API and pycuda, as far as `core/cuda` uses them, over the simulated device of `fake_gpu`.

Kernels are their own sources, run by `kernels.devices.emulated` in their turn. Names and parameters are those of
`cuda.bindings.driver`, which tests check, and of pycuda's manual: it is built from source with a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace

import numpy as np

from intsr.kernels.devices import emulated as emulate
from intsr.kernels.launches.launch import Launch
from intsr.kernels.launches.parameters import KERNELS

VERSION = 13020


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


def fatbin_of(source: str) -> bytes:
    """What stands for a compiled source here."""
    return b"kernels of " + source.encode()


def kernels_of(image: bytes) -> set[str]:
    """Their names; none for what is no image."""
    return {name for name, (source, _) in KERNELS.items() if fatbin_of(source) == image}


def params_bytes(name: str) -> int:
    """As the source itself has it."""
    return emulate._library(KERNELS[name][0])[f"{name}_params"]()


def put_launch(gpu, name: str, grid, block: int, shared_bytes: int, params: bytes, stream: int) -> None:
    struct = KERNELS[name][1].from_buffer_copy(params)

    def run() -> None:
        for field, kind in struct._fields_:
            address = getattr(struct, field)
            if kind is ctypes.c_uint64 and address:
                # KeyError where it was freed: the emulation would read it all the same.
                gpu.memory(address, 1)
        emulate.EmulatedDevice()._launch(Launch(name, tuple(grid), block, struct, shared_bytes))

    gpu.put(stream, name, run)


def _keep(gpu, kind: str, thing) -> int:
    number = gpu.number()
    getattr(gpu, kind)[number] = thing
    return number


def _free(self, dptr):
    if self.gpu.capturing:
        # It would wait for the device: forbidden, and the end of the capture.
        self.gpu.spoiled |= set(self.gpu.capturing)
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    del self.gpu.device[dptr]
    return ()


def _destroy_stream(self, hStream):
    assert not self.gpu.streams.pop(hStream), "a stream went while it had work"


def _end_capture(self, hStream):
    work = self.gpu.capturing.pop(hStream)
    if hStream in self.gpu.spoiled:
        self.gpu.spoiled.remove(hStream)
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
    return _keep(self.gpu, "graphs", work)


def _launch_graph(self, hGraphExec, hStream):
    for name, function in self.gpu.graphs[hGraphExec]:
        self.gpu.put(hStream, f"graph {name}", function)


def _attribute(self, attrib, dev):
    major, minor = self.gpu.capability
    return {75: major, 76: minor, 16: self.gpu.multiprocessors, 97: 99 << 10}[attrib]


def _load(self, image):
    kernels = kernels_of(image)
    return _keep(self.gpu, "modules", kernels) if kernels else (CUresult.CUDA_ERROR_INVALID_IMAGE, None)


def _get_function(self, hmod, name):
    found = name.decode() in self.gpu.modules[hmod]
    return ((hmod, name.decode()),) if found else (CUresult.CUDA_ERROR_NOT_FOUND, None)


def _launch_kernel(
    self, f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ,
    sharedMemBytes, hStream, kernelParams, extra,
):  # fmt: skip
    module, name = f
    assert module in self.gpu.modules, "a kernel of a module that was unloaded"
    assert (blockDimY, blockDimZ, extra) == (1, 1, 0) and sharedMemBytes <= 48 << 10
    # CUDA reads the parameters before it returns.
    params = ctypes.string_at(ctypes.c_void_p.from_address(kernelParams).value, params_bytes(name))
    put_launch(self.gpu, name, (gridDimX, gridDimY, gridDimZ), blockDimX, sharedMemBytes, params, hStream)


_NO_MEMORY = (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
# Of `CudaDriver`, with the parameters of the real functions. What has no status succeeds.
CALLS = {
    "cuInit": lambda self, Flags: (),
    "cuDriverGetVersion": lambda self: self.version,
    "cuDeviceGetCount": lambda self: len(self.gpu.device_names),
    "cuDeviceGet": lambda self, ordinal: ordinal,
    "cuDeviceGetName": lambda self, length, dev: self.gpu.device_names[dev].encode().ljust(length, b"\0"),
    "cuDeviceGetAttribute": _attribute,
    "cuDeviceTotalMem": lambda self, dev: self.gpu.total_bytes,
    "cuDevicePrimaryCtxRetain": lambda self, dev: dev,
    "cuCtxSetCurrent": lambda self, ctx: setattr(self.gpu, "current", ctx),
    "cuCtxSynchronize": lambda self: self.gpu.drain_all(),
    "cuMemAlloc": lambda self, bytesize: self.gpu.alloc(bytesize) or _NO_MEMORY,
    "cuMemFree": _free,
    "cuMemAllocHost": lambda self, bytesize: self.gpu.alloc_pinned(bytesize).ctypes.data,
    "cuMemFreeHost": lambda self, p: self.gpu.host_memory.pop(p),
    "cuMemcpyHtoDAsync": lambda self, dstDevice, srcHost, ByteCount, hStream: self.gpu.put_copy(
        dstDevice, srcHost, ByteCount, "up", hStream
    ),
    "cuMemcpyDtoHAsync": lambda self, dstHost, srcDevice, ByteCount, hStream: self.gpu.put_copy(
        dstHost, srcDevice, ByteCount, "down", hStream
    ),
    "cuMemcpyDtoDAsync": lambda self, dstDevice, srcDevice, ByteCount, hStream: self.gpu.put_copy(
        dstDevice, srcDevice, ByteCount, "copy", hStream
    ),
    "cuMemsetD8Async": lambda self, dstDevice, uc, N, hStream: self.gpu.put_fill(dstDevice, uc, N, hStream),
    "cuMemGetInfo": lambda self: self.gpu.memory_info(),
    "cuStreamCreate": lambda self, Flags: self.gpu.create_stream(),
    "cuStreamDestroy": _destroy_stream,
    "cuStreamSynchronize": lambda self, hStream: self.gpu.drain(hStream),
    "cuStreamWaitEvent": lambda self, hStream, hEvent, Flags: self.gpu.wait(hStream, hEvent),
    "cuEventCreate": lambda self, Flags: self.gpu.create_event(),
    # What waits for it waits on.
    "cuEventDestroy": lambda self, hEvent: self.gpu.events.pop(hEvent),
    "cuEventRecord": lambda self, hEvent, hStream: self.gpu.record(hEvent, hStream),
    "cuEventSynchronize": lambda self, hEvent: self.gpu.reach(self.gpu.events[hEvent]),
    "cuEventElapsedTime": lambda self, hStart, hEnd: self.gpu.elapsed(hStart, hEnd),
    "cuStreamBeginCapture": lambda self, hStream, mode: self.gpu.capturing.update({hStream: []}),
    "cuStreamEndCapture": _end_capture,
    "cuGraphInstantiate": lambda self, hGraph, flags: _keep(self.gpu, "graphs", [*self.gpu.graphs[hGraph]]),
    "cuGraphDestroy": lambda self, hGraph: self.gpu.graphs.pop(hGraph),
    "cuGraphExecDestroy": lambda self, hGraphExec: self.gpu.graphs.pop(hGraphExec),
    "cuGraphLaunch": _launch_graph,
    "cuModuleLoadData": _load,
    "cuModuleUnload": lambda self, hmod: self.gpu.modules.pop(hmod),
    "cuModuleGetFunction": _get_function,
    "cuFuncGetParamInfo": lambda self, func, paramIndex: (0, params_bytes(func[1])),
    "cuLaunchKernel": _launch_kernel,
}


class CudaDriver:
    """`cuda.bindings.driver`; a context is its device's number."""

    CUresult = CUresult
    CUstream = int
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_BLOCKING_SYNC=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97,
    )

    def __init__(self, gpu) -> None:
        self.gpu, self.version = gpu, VERSION

    def __getattr__(self, name: str):
        if name not in CALLS:
            raise AttributeError(name)
        gpu = self.gpu

        def call(*arguments):
            gpu.calls[name] += 1
            if name in gpu.fail:
                return CUresult[gpu.fail[name]], None
            result = CALLS[name](self, *arguments)
            if not isinstance(result, tuple):
                result = () if result is None else (result,)
            return result if result and isinstance(result[0], CUresult) else (CUresult.CUDA_SUCCESS, *result)

        return call


class PyCudaModule:
    """pycuda's Module and, by name, its Function: gone with their last reference."""

    def __init__(self, gpu, image: bytes) -> None:
        self._gpu, self._number = gpu, gpu.number()
        gpu.modules[self._number] = kernels_of(image)

    def __del__(self):
        self._gpu.modules.pop(self._number)

    def get_function(self, name):
        gpu, module = self._gpu, self

        class Function:
            def prepare(self, arg_types):
                assert module is not None
                (self.format,) = arg_types
                return self

            def prepared_async_call(self, grid, block, stream, *args, shared_size=0):
                (params,) = args
                assert self.format == f"{params_bytes(name)}s" and block[1:] == (1, 1)
                put_launch(gpu, name, grid, block[0], shared_size, params, stream.handle)

        return Function()


class PyCudaDriver:
    """`pycuda.driver`."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    event_flags = SimpleNamespace(BLOCKING_SYNC=1)
    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16)

    def __init__(self, gpu) -> None:
        self._gpu = gpu
        self.stack = []
        driver = self

        class Context:
            get_current = staticmethod(lambda: driver.stack[-1] if driver.stack else None)
            synchronize = staticmethod(gpu.drain_all)

            def push(self):
                driver.stack.append(self)

            def pop(self):
                assert driver.stack.pop() is self

            def detach(self):
                gpu.calls["detach"] += 1

        class Device:
            count = staticmethod(lambda: len(gpu.device_names))

            def __init__(self, number):
                self.number = number

            def name(self):
                return gpu.device_names[self.number]

            def compute_capability(self):
                return gpu.capability

            def total_memory(self):
                return gpu.total_bytes

            def get_attribute(self, attribute):
                assert attribute == driver.device_attribute.MULTIPROCESSOR_COUNT
                return gpu.multiprocessors

            def retain_primary_context(self):
                gpu.calls["retain_primary_context"] += 1
                gpu.current = self.number
                return Context()

        class Stream:
            def __init__(self, flags):
                self.handle = gpu.create_stream()

            def synchronize(self):
                gpu.drain(self.handle)

            def wait_for_event(self, event):
                gpu.wait(self.handle, event.handle)

            def __del__(self):
                gpu.streams.pop(self.handle, None)

        class Event:
            def __init__(self, flags):
                self.handle = gpu.create_event()

            def record(self, stream):
                gpu.record(self.handle, stream.handle)

            def synchronize(self):
                gpu.reach(gpu.events[self.handle])

            def time_till(self, event):
                return gpu.elapsed(self.handle, event.handle)

            def __del__(self):
                gpu.events.pop(self.handle, None)

        self.Context, self.Device, self.Stream, self.Event = Context, Device, Stream, Event

    def init(self):
        if "init" in self._gpu.fail:
            raise self.Error(self._gpu.fail["init"])

    def get_driver_version(self):
        return VERSION

    def mem_get_info(self):
        return self._gpu.memory_info()

    def mem_alloc(self, size):
        gpu, address = self._gpu, self._gpu.alloc(size)
        if address is None:
            raise self.MemoryError("cuMemAlloc failed: out of memory")

        class DeviceAllocation:
            def __int__(self):
                return address

            def free(self):
                del gpu.device[address]

        return DeviceAllocation()

    def pagelocked_empty(self, shape, dtype):
        gpu, memory = self._gpu, self._gpu.alloc_pinned(shape)

        class Pagelocked(np.ndarray):
            @property
            def base(self):
                return SimpleNamespace(free=lambda: gpu.host_memory.pop(memory.ctypes.data))

        return memory.view(Pagelocked)

    def module_from_buffer(self, image):
        if "module" in self._gpu.fail:
            raise self.Error(self._gpu.fail["module"])
        return PyCudaModule(self._gpu, image)

    def memset_d8_async(self, dest, data, count, stream):
        self._gpu.put_fill(dest, data, count, stream.handle)

    def memcpy_htod_async(self, dest, src, stream):
        self._gpu.put_copy(dest, src.ctypes.data, src.nbytes, "up", stream.handle)

    def memcpy_dtoh_async(self, dest, src, stream):
        self._gpu.put_copy(dest.ctypes.data, src, dest.nbytes, "down", stream.handle)

    def memcpy_dtod_async(self, dest, src, size, stream):
        self._gpu.put_copy(dest, src, size, "copy", stream.handle)
