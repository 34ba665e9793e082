"""What `core/cuda` calls exists in the real libraries, with the parameters that it passes; no GPU is needed.

The simulated GPU of the other tests is held to the same names, so that it cannot answer what the real one does not.
"""

from __future__ import annotations

import inspect
import re
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest
from fake_driver import CALLS, CUresult

from intsr.cuda import driver as cuda_driver
from intsr.cuda.driver import Cuda, open_cuda
from intsr.cuda.pycuda import PyCuda
from intsr.errors import EngineMismatchError, UsageError

# Launches of clusters and of more than 48 KiB: called through the stub of the driver, see tests/kernels.
NOT_SIMULATED = {"cuFuncSetAttribute", "cuLaunchKernelEx"}


def test_the_simulated_driver_is_cuda_pythons() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, value in CALLS.items():
        parameters = [p for p in inspect.signature(value).parameters if p != "self"]
        signature = getattr(driver, name).__doc__.strip().splitlines()[0]
        inside = re.fullmatch(rf"{name}\((.*)\)", signature)
        assert inside is not None, signature
        # Written `unsigned int gridDimX`, `char *name`, `mode: CUstreamCaptureMode` or `hStream`.
        real = [part.split(":")[0].split()[-1].lstrip("*") for part in inside[1].split(", ") if part]
        assert parameters == real, signature
    for status in CUresult:
        assert getattr(driver.CUresult, status.name).value == status.value
    assert set(driver.CUresult.__members__) >= cuda_driver._NO_DRIVER
    assert all(hasattr(driver, name) for name in NOT_SIMULATED)
    assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN == 97


def test_all_that_is_called_is_simulated() -> None:
    source = inspect.getsource(cuda_driver)
    called = {*re.findall(r'"(cu[A-Z]\w+)"', source), *re.findall(r"_driver\.(cu[A-Z]\w+)\(", source)}
    assert called - NOT_SIMULATED == set(CALLS)


def test_pycuda_answers_every_call_but_those_of_graphs() -> None:
    public = {name for name, value in vars(Cuda).items() if callable(value) and not name.startswith("_")}
    graphs = {"begin_capture", "end_capture", "abandon_capture", "launch_graph", "destroy_graph"}
    assert public - graphs == {name for name in public if name in vars(PyCuda)} and not PyCuda.graphs


def test_the_real_cuda_python_without_a_driver() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if find_library("cuda"):
        pytest.skip("there is a driver here")
    with pytest.raises(EngineMismatchError, match=r"e\.engine: no usable NVIDIA driver \(.*an NVIDIA GPU") as caught:
        open_cuda("cuda-python", None, "e.engine", "rtx")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "named"),
    [("cuda-python", r"cuda is not installed.*intsr\[rtx\]"), ("pycuda", r"pycuda is not installed.*\[pycuda\]")],
)
def test_bindings_that_are_missing(backend: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineMismatchError, match=named) as caught:
        open_cuda(backend, None, "e.engine", "rtx")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="--cuda-backend: 'numba'; expected one of cuda-python, pycuda"):
        open_cuda("numba", None, "e.engine", "rtx")


def test_bindings_that_lack_their_own_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text(
        "raise ImportError('libcuda.so.1: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineMismatchError, match=r"pycuda cannot be loaded \(libcuda.so.1.*intsr\[pycuda\]"):
        open_cuda("pycuda", None, "e.engine", "rtx")
    monkeypatch.delitem(sys.modules, "pycuda")
