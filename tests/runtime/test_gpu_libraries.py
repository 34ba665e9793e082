"""What the GPU runtime calls exists in the real libraries, with the parameters that it passes; no GPU is needed.

The simulated GPU of the other tests is held to the same names, so that it cannot answer what the real ones do not.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fake_tensorrt
import pytest
from fake_driver import CALLS, CUresult

from intsr.cuda import driver as cuda_driver
from intsr.cuda.driver import Cuda, open_cuda
from intsr.cuda.pycuda import PyCuda
from intsr.errors import EngineMismatchError, UsageError
from intsr.runtime.backends.tensorrt import library as tensorrt_library

# Launches of clusters and of more than 48 KiB: called through the stub of the driver, see tests/kernels.
NOT_SIMULATED = {"cuFuncSetAttribute", "cuLaunchKernelEx"}
RTX_CODE = """
import json, sys
import tensorrt_rtx as trt
"""
DESCRIBE = (
    RTX_CODE
    + """
classes = ("Runtime", "ICudaEngine", "IExecutionContext", "IProfiler", "ILogger", "IRuntimeConfig", "IRuntimeCache")
print(json.dumps({
    "classes": {c: {n: getattr(getattr(trt, c), n).__doc__ or "" for n in dir(getattr(trt, c))} for c in classes},
    "settable": [n for n, p in vars(trt.IExecutionContext).items() if getattr(p, "fset", None)],
    "enums": {e: list(getattr(trt, e).__members__) for e in
              ("ExecutionContextAllocationStrategy", "TensorIOMode", "DataType")},
}))
"""
)
DESERIALIZE = (
    RTX_CODE
    + """
from intsr.errors import IntsrError
from intsr.runtime.backends.tensorrt import library as tensorrt_library
library = tensorrt_library.load_tensorrt("tensorrt-rtx", "e.engine")
runtime = tensorrt_library.make_runtime(library, "e.engine")
try:
    tensorrt_library.deserialize(library, runtime, memoryview(open(sys.argv[1], "rb").read()), "e.engine:unet.plan")
except IntsrError as error:
    print(json.dumps({"text": str(error), "exit_code": error.exit_code, "host": runtime.engine_host_code_allowed}))
"""
)
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed")


def _child(code: str, *arguments: str) -> dict:
    """In a process of its own; no GPU is shown to it."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def real() -> dict:
    return _child(DESCRIBE)


@needs_rtx
@pytest.mark.parametrize(
    ("simulated", "name"),
    [
        *((name, name) for name in ("Runtime", "ICudaEngine", "IExecutionContext", "IProfiler", "ILogger")),
        *((name, name) for name in ("IRuntimeConfig", "IRuntimeCache")),
        ("RtxRuntimeConfig", "IRuntimeConfig"),
        # By a configuration is the other way to make a context.
        ("RtxCudaEngine", "ICudaEngine"),
    ],
)
def test_the_simulated_tensorrt_has_only_what_the_real_one_has(real: dict, simulated: str, name: str) -> None:
    known = real["classes"][name]
    for attribute, value in vars(getattr(fake_tensorrt, simulated)).items():
        if attribute.startswith("_"):
            continue
        assert attribute in known, f"{name}.{attribute}"
        if callable(value):
            documented = re.findall(r"\((self: .*)\) ->", known[attribute])
            signatures = [re.findall(r"(?:^|, )(\w+): ", text) for text in documented]
            assert list(inspect.signature(value).parameters) in signatures, f"{name}.{attribute}{signatures}"
    assert "profiler" in real["settable"]


@needs_rtx
def test_enums(real: dict) -> None:
    for name, members in real["enums"].items():
        used = [member.name for member in getattr(fake_tensorrt, name)]
        assert set(used) <= set(members), name


@needs_rtx
def test_the_real_deserializer_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    # A plan's tag and version, nothing behind them: what TensorRT logs comes out as one line, and no host code.
    plan = tmp_path / "plan"
    plan.write_bytes(b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(200))
    said = _child(DESERIALIZE, str(plan))
    assert said["text"].startswith("e.engine:unet.plan: reading the plan failed (IRuntime::deserializeCudaEngine")
    assert (said["exit_code"], said["host"]) == (3, False) and "\n" not in said["text"]


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_tensorrt_that_is_missing(target: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
    with pytest.raises(EngineMismatchError, match=rf"is not installed.*intsr\[{extra}\]"):
        tensorrt_library.load_tensorrt(target, "e.engine")


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
