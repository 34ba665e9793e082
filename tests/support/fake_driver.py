"""Kernels on the simulated device of `fake_gpu`: their own sources, run by `kernels.devices.emulated` in their turn.

Names and parameters are those of `cuda.bindings.driver`, which tests check, and of pycuda's manual.
"""

from __future__ import annotations

import ctypes
import enum

from intsr.kernels.devices import emulated as emulate
from intsr.kernels.launches.launch import Launch
from intsr.kernels.launches.parameters import KERNELS


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_LAUNCH_FAILED = 719


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


class CudaDriver:
    """`cuda.bindings.driver`, as far as kernels need it."""

    CUresult = CUresult

    def __init__(self, gpu) -> None:
        self._gpu = gpu

    def __getattribute__(self, name: str):
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value
        gpu = self._gpu

        def call(*arguments):
            gpu.calls[name] += 1
            if name in gpu.fail:
                return CUresult[gpu.fail[name]], *[None] * (2 if name == "cuFuncGetParamInfo" else 1)
            result = value(*arguments)
            return result if result and isinstance(result[0], CUresult) else (CUresult.CUDA_SUCCESS, *result)

        return call

    def cuModuleLoadData(self, image):
        kernels = kernels_of(image)
        if not kernels:
            return CUresult.CUDA_ERROR_INVALID_IMAGE, None
        module = self._gpu.number()
        self._gpu.modules[module] = kernels
        return (module,)

    def cuModuleUnload(self, hmod):
        del self._gpu.modules[hmod]
        return ()

    def cuModuleGetFunction(self, hmod, name):
        if name.decode() not in self._gpu.modules[hmod]:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        return ((hmod, name.decode()),)

    def cuFuncGetParamInfo(self, func, paramIndex):
        assert paramIndex == 0
        return 0, params_bytes(func[1])

    def cuLaunchKernel(
        self,
        f,
        gridDimX,
        gridDimY,
        gridDimZ,
        blockDimX,
        blockDimY,
        blockDimZ,
        sharedMemBytes,
        hStream,
        kernelParams,
        extra,
    ):
        module, name = f
        assert module in self._gpu.modules, "a kernel of a module that was unloaded"
        assert (blockDimY, blockDimZ, extra) == (1, 1, 0) and sharedMemBytes <= 48 << 10
        # CUDA reads the parameters before it returns.
        pointer = ctypes.c_void_p.from_address(kernelParams).value
        params = ctypes.string_at(pointer, params_bytes(name))
        grid = (gridDimX, gridDimY, gridDimZ)
        put_launch(self._gpu, name, grid, blockDimX, sharedMemBytes, params, hStream)
        return ()


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
