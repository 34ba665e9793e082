"""The kernels of whole pictures: how they are launched, who imports them, what is said where they are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from intsr.errors import BuildError, OutOfMemoryError
from intsr.kernels.devices import emulated as emulate
from intsr.runtime.engine import open_engine

try:
    emulate.find_cpp_compiler()
    NO_COMPILER = ""
except BuildError as found:
    NO_COMPILER = str(found)
pytestmark = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "-")


def test_no_memory_for_the_kernels(machine) -> None:
    machine.build_kernels()
    machine.gpu.fail["cuModuleLoadData"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(OutOfMemoryError, match=r"out of memory.*cuModuleLoadData"):
        open_engine(machine.engine(dtype="float16"))
    machine.assert_nothing_is_left()


def _warns(machine, words: str, photo: np.ndarray, dtype: str = "float16", backend: str = "cuda-python") -> None:
    """Said once, and the host does it."""
    with pytest.warns(RuntimeWarning, match=f"pictures on the CPU, which costs some time: .*{words}") as caught:
        engine = open_engine(machine.engine(dtype=dtype), cuda_backend=backend)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with engine, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert not engine.upscale_with_timings(photo).on_device
    machine.assert_nothing_is_left()


def test_kernels_that_were_not_built(machine, photo: np.ndarray) -> None:
    _warns(machine, "picture.fatbin is not built.*python -m intsr.kernels.build", photo)
    (machine.folder / "picture.fatbin").write_bytes(machine.support.fatbin_of("picture"))
    _warns(machine, "color_fix.fatbin is not built", photo)


def test_kernels_that_cuda_does_not_take(machine, photo: np.ndarray) -> None:
    machine.build_kernels()
    machine.gpu.fail["cuModuleLoadData"] = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    _warns(machine, "cuModuleLoadData reports CUDA_ERROR_NO_BINARY_FOR_GPU", photo)
    machine.gpu.fail["module"] = "cuModuleLoadDataEx failed: device kernel image is invalid"
    _warns(machine, "device kernel image is invalid", photo, backend="pycuda")


def test_kernels_of_an_older_version(machine, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build_kernels()
    monkeypatch.setattr(type(machine.driver), "cuFuncGetParamInfo", lambda self, func, paramIndex: (0, 8))
    _warns(machine, "takes 8 bytes of parameters.*build the kernels again", photo)


def test_networks_in_another_dtype(machine, photo: np.ndarray) -> None:
    machine.build_kernels()
    _warns(machine, "take float32 and give float32, the kernels float16", photo, "float32")


ON_STUB = """
import sys
import numpy as np
import cuda.bindings.driver as driver
from intsr.errors import IntsrError
from intsr.kernels.reference import picture as reference_picture
from intsr.kernels.launches.parameters import KERNELS, PixelsParams
from intsr.cuda.driver import CudaDevice
from intsr.cuda.cuda_python import CudaPython

class Runtime:
    cudaSetDevice = staticmethod(lambda index: (0,))

cuda = CudaPython(Runtime, CudaDevice(0, "stub", (9, 0), 0, "", 1), "e.engine")
module = cuda.load_module(bytes.fromhex("50ed55ba") * 4)
planes = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
out = np.zeros(35, np.uint8)
params = PixelsParams(planes=planes.ctypes.data, out=out.ctypes.data, count=35)
kernel = cuda.kernel(module, "luma_from_unit", len(bytes(params)))
cuda.launch_kernel(kernel, (1, 1, 1), 256, 0, bytes(params), driver.CUstream(7))
np.testing.assert_array_equal(out.reshape(5, 7), reference_picture.luma_from_unit(planes))
for wrong in (
    lambda: cuda.kernel(module, "luma_from_unit", 8),
    lambda: cuda.load_module(bytes(16)),
    lambda: cuda.launch_kernel(kernel, (1, 1, 1), 256, 0, bytes(params), driver.CUstream(8)),
):
    try:
        wrong()
        sys.exit("no error")
    except IntsrError as error:
        print(error)
cuda.unload_module(module)
"""


@pytest.mark.skipif(util.find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_kernels_through_the_real_cuda_python(tmp_path: Path) -> None:
    """On the stub of the driver that has the emulated kernels for a GPU."""
    stub = Path(__file__).parents[1] / "kernels" / "stub_driver.c"
    flags = ["-x", "c", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    command = [*emulate.find_cpp_compiler(), *flags, str(stub), "-o", str(tmp_path / "libcuda.so.1"), "-ldl"]
    subprocess.run(command, check=True)
    kernels = emulate._library("picture")._name
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "INTSR_STUB_KERNELS": kernels}
    run = subprocess.run([sys.executable, "-c", ON_STUB], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    parameters, image, stream = run.stdout.splitlines()
    assert "takes 24 bytes of parameters; expected 8 bytes; build the kernels again" in parameters
    assert "CUDA failed: cuModuleLoadData reports CUDA_ERROR_INVALID_IMAGE" in image
    assert "CUDA failed: cuLaunchKernel reports CUDA_ERROR_INVALID_VALUE" in stream


def test_only_gpu_engines_bring_the_kernels_package() -> None:
    """Everything else of the runtime imports where it is not there at all."""
    code = """
import importlib, pkgutil, sys
sys.modules["intsr.kernels"] = None
import intsr.runtime
names = [m.name for m in pkgutil.walk_packages(intsr.runtime.__path__, "intsr.runtime.")]
for name in names:
    if ".tensorrt.picture_" not in name:
        importlib.import_module(name)
print(len(names))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 50


def test_what_pictures_need_of_the_kernels_is_numpy() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "onnx", "tensorrt", "cuda", "pycuda", "scipy")))
import intsr.runtime.backends.tensorrt.picture_pipeline
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
