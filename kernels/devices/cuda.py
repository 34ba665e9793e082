"""Launches the compiled kernels through the CUDA driver's own API (cuda-python), without torch.

Works in the device's primary context, on a stream of its own: arrays of torch or cupy can be read and written
(`__cuda_array_interface__`), once their own work is done. Its arrays name that stream for cupy and numba
to wait for; torch does not: `synchronize` first.
"""

from __future__ import annotations

import ctypes
import importlib
import statistics
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.errors import BuildError, EngineMismatchError, MissingLibraryError, OutOfMemoryError, VerificationError
from intsr.kernels.build import fatbin_path
from intsr.kernels.launches.launch import ContextLostError, DeviceArray, Launch, Plan
from intsr.kernels.launches.parameters import KERNELS, ReadParams

# Dynamic shared memory that needs no permission.
_PLAIN_SHARED_BYTES = 48 * 1024
# More than the second-level cache of any GPU: writing and reading it takes earlier results out of the cache.
_FLUSH_BYTES = 256 << 20
_READ_THREADS, _READ_BLOCKS = 256, 4
# "Any further CUDA work will return the same error." Source: CUDA driver API, CUresult.
_LOST = frozenset(
    (
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
    )
)


def load_driver() -> Any:
    """cuda-python's driver module. Raises MissingLibraryError."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingLibraryError("cuda-python", "gpu", "device kernels") from error


def _places(params: ctypes.Structure) -> tuple[tuple[int, int], ...]:
    """(offset, bytes) of every parameter of the kernel."""
    if not getattr(params, "separate", False):
        return ((0, ctypes.sizeof(params)),)
    fields = [getattr(type(params), name) for name, *_ in params._fields_]
    return tuple((field.offset, field.size) for field in fields)


class _Memory:
    """Device memory that is freed with its last array."""

    def __init__(self, call: Callable[..., Any], driver: Any, size_bytes: int) -> None:
        self.pointer = int(call(driver.cuMemAlloc, max(size_bytes, 1)))
        weakref.finalize(self, driver.cuMemFree, self.pointer)


class CudaDevice:
    """One NVIDIA GPU. Raises EngineMismatchError where there is none, or none that the kernels are for."""

    def __init__(self, ordinal: int = 0, driver: Any | None = None) -> None:
        self._driver = driver = driver or load_driver()
        self.emulated = False
        try:
            self._call(driver.cuInit, 0)
            device = self._call(driver.cuDeviceGet, ordinal)
        except (RuntimeError, VerificationError) as error:
            # cuda-python raises its own RuntimeError where libcuda is not installed.
            reason = str(error).splitlines()[0]
            raise EngineMismatchError("GPU", f"no usable NVIDIA driver ({reason})", "an NVIDIA GPU") from error
        attributes = driver.CUdevice_attribute

        def attribute(name: str) -> int:
            key = getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._call(driver.cuDeviceGetAttribute, key, device))

        self.name = self._call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
        self.capability = attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")
        self.multiprocessors = attribute("MULTIPROCESSOR_COUNT")
        self.shared_bytes = attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        if self.capability < (8, 0):
            got = f"{self.name} of compute capability {self.capability[0]}.{self.capability[1]}"
            raise EngineMismatchError("GPU", got, "8.0 or newer")
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, device)
        self._call(driver.cuCtxSetCurrent, self._context)
        self._stream = self._call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._shared_bytes: dict[str, int] = {}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a driver function gives besides its status. Raises OutOfMemoryError, VerificationError.

        ContextLostError of the latter for a kernel's fault, which shows in whatever waits for it.
        """
        status, *values = function(*arguments)
        if int(status) != 0:
            name = getattr(function, "__name__", "CUDA driver")
            if int(status) == int(self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY):
                raise OutOfMemoryError("GPU memory", f"{name} failed", fix="use smaller tiles")
            reason = getattr(status, "name", str(int(status)))
            raise (ContextLostError if reason in _LOST else VerificationError)(name, reason)
        return values[0] if len(values) == 1 else values

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        memory = _Memory(self._call, self._driver, int(np.prod(shape)) * kind.itemsize)
        return DeviceArray(memory.pointer, tuple(shape), kind, memory, int(self._stream))

    def upload(self, array: Array) -> DeviceArray:
        dense = np.ascontiguousarray(array)
        result = self.empty(dense.shape, dense.dtype)
        if dense.nbytes:
            copy = self._driver.cuMemcpyHtoDAsync
            self._call(copy, result.pointer, dense.ctypes.data, dense.nbytes, self._stream)
        self.synchronize()
        return result

    def download(self, array: DeviceArray) -> Array:
        result = np.empty(array.shape, array.dtype)
        if result.nbytes:
            copy = self._driver.cuMemcpyDtoHAsync
            self._call(copy, result.ctypes.data, array.pointer, result.nbytes, self._stream)
        self.synchronize()
        return result

    def synchronize(self) -> None:
        self._call(self._driver.cuStreamSynchronize, self._stream)

    def run(self, plan: Plan) -> DeviceArray:
        for launch in plan.launches:
            self._launch(launch)
        # It may be an array of another library, which is written in this stream from now on.
        return replace(plan.output, stream=int(self._stream))

    def _function(self, launch: Launch) -> Any:
        driver, name = self._driver, launch.kernel
        if name not in self._functions:
            source = KERNELS[name][0]
            if source not in self._modules:
                path = fatbin_path(source)
                if not path.is_file():
                    raise BuildError(path.name, "not built", fix="run: python -m intsr.kernels.build")
                self._modules[source] = self._call(driver.cuModuleLoadData, path.read_bytes())
            function = self._call(driver.cuModuleGetFunction, self._modules[source], name.encode())
            self._check_params(function, launch)
            self._functions[name] = function
        if launch.shared_bytes > self._shared_bytes.get(name, _PLAIN_SHARED_BYTES):
            key = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(driver.cuFuncSetAttribute, self._functions[name], key, launch.shared_bytes)
            self._shared_bytes[name] = launch.shared_bytes
        return self._functions[name]

    def _check_params(self, function: Any, launch: Launch) -> None:
        """Parameters that differ from the source's would be read past their end. Raises BuildError."""
        for index, (offset, size) in enumerate(_places(launch.params)):
            found = tuple(int(v) for v in self._call(self._driver.cuFuncGetParamInfo, function, index))
            if found != (offset, size):
                got = (
                    f"parameters of {size} bytes" if not offset else f"parameter {index} of {size} bytes at {offset}"
                )
                fix = "run: python -m intsr.kernels.build"
                raise BuildError(launch.kernel, got, f"{found[1]} bytes at {found[0]}", fix)

    def _launch(self, launch: Launch) -> None:
        driver, function = self._driver, self._function(launch)
        places = _places(launch.params)
        start = ctypes.addressof(launch.params)
        pointers = (ctypes.c_void_p * len(places))(*(start + offset for offset, _ in places))
        arguments = ctypes.addressof(pointers)
        # Kernels of separate parameters have their cluster compiled in, as TensorRT cannot ask for one.
        if launch.cluster == 1 or len(places) > 1:
            sizes = (*launch.grid, launch.block, 1, 1, launch.shared_bytes)
            self._call(driver.cuLaunchKernel, function, *sizes, self._stream, arguments, 0)
            return
        cluster = driver.CUlaunchAttribute()
        cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        dimension = cluster.value.clusterDim
        dimension.x, dimension.y, dimension.z = launch.cluster, 1, 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block, 1, 1
        config.sharedMemBytes, config.hStream = launch.shared_bytes, self._stream
        config.attrs, config.numAttrs = [cluster], 1
        self._call(driver.cuLaunchKernelEx, config, function, arguments, 0)

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Median over runs from one CUDA graph, caches emptied before each, so that launches cost next to nothing."""
        driver = self._driver
        self.run(plan)
        self.synchronize()
        self._call(
            driver.cuStreamBeginCapture, self._stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        )
        self.run(plan)
        graph = self._call(driver.cuStreamEndCapture, self._stream)
        executable = self._call(driver.cuGraphInstantiate, graph, 0)
        try:
            return self._median(lambda: self._call(driver.cuGraphLaunch, executable, self._stream), repeats)
        finally:
            self._call(driver.cuGraphExecDestroy, executable)
            self._call(driver.cuGraphDestroy, graph)

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        source, target = (self.empty((size_bytes,), np.uint8) for _ in range(2))
        copy = self._driver.cuMemcpyDtoDAsync
        pointers = target.pointer, source.pointer
        return self._median(lambda: self._call(copy, *pointers, size_bytes, self._stream), repeats)

    def _median(self, start: Callable[[], Any], repeats: int) -> float:
        driver = self._driver
        events = [self._call(driver.cuEventCreate, 0) for _ in range(2)]
        flush, blocks = self.empty((_FLUSH_BYTES,), np.uint8), self.multiprocessors * _READ_BLOCKS
        sums = self.empty((blocks * _READ_THREADS // 32,), np.uint32)
        params = ReadParams(words=flush, out=sums, count=_FLUSH_BYTES // 16)
        read = Launch("read_words", (blocks, 1, 1), _READ_THREADS, params)
        times = []
        for _ in range(repeats + 3):
            self._call(driver.cuMemsetD8Async, flush.pointer, 0, _FLUSH_BYTES, self._stream)
            # What was written is still in the cache: reading writes it back, before the clock starts.
            self._launch(read)
            self._call(driver.cuEventRecord, events[0], self._stream)
            start()
            self._call(driver.cuEventRecord, events[1], self._stream)
            self.synchronize()
            times.append(float(self._call(driver.cuEventElapsedTime, *events)))
        for event in events:
            self._call(driver.cuEventDestroy, event)
        return statistics.median(times[3:])
