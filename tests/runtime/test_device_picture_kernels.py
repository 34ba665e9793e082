"""The kernels of whole pictures: how they are launched, what is said where they are missing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from fake_driver import CALLS, fatbin_of

from intsr.errors import BuildError, OutOfMemoryError
from intsr.kernels.devices import emulated as emulate
from intsr.runtime.engine import open_engine

try:
    emulate.find_cpp_compiler()
    NO_COMPILER = ""
except BuildError as found:
    NO_COMPILER = str(found)
# The CUDA sources, run on the CPU: `make test-slow`.
pytestmark = [pytest.mark.kernels, pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "-")]


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
    (machine.folder / "picture.fatbin").write_bytes(fatbin_of("picture"))
    _warns(machine, "color_fix.fatbin is not built", photo)


def test_kernels_that_cuda_does_not_take(machine, photo: np.ndarray) -> None:
    machine.build_kernels()
    machine.gpu.fail["cuModuleLoadData"] = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    _warns(machine, "cuModuleLoadData reports CUDA_ERROR_NO_BINARY_FOR_GPU", photo)
    machine.gpu.fail["module"] = "cuModuleLoadDataEx failed: device kernel image is invalid"
    _warns(machine, "device kernel image is invalid", photo, backend="pycuda")


def test_kernels_of_an_older_version(machine, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build_kernels()
    monkeypatch.setitem(CALLS, "cuFuncGetParamInfo", lambda self, func, paramIndex: (0, 8))
    _warns(machine, "takes 8 bytes of parameters.*build the kernels again", photo)


def test_networks_in_another_dtype(machine, photo: np.ndarray) -> None:
    machine.build_kernels()
    _warns(machine, "take float32 and give float32, the kernels float16", photo, "float32")
