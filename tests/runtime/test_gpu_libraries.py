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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from intsr.cuda import cuda_python
from intsr.cuda import driver as cuda_interface
from intsr.errors import EngineMismatchError
from intsr.runtime.backends.tensorrt import library as tensorrt_library

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


def _own(cls: type) -> dict[str, object]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


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
def test_the_simulated_tensorrt_has_only_what_the_real_one_has(
    machine, real: dict, simulated: str, name: str
) -> None:
    known = real["classes"][name]
    for attribute, value in _own(getattr(machine.support, simulated)).items():
        assert attribute in known, f"{name}.{attribute}"
        if callable(value):
            _check_parameters(value, f"{name}.{attribute}", known[attribute])
    assert "profiler" in real["settable"]


def _check_parameters(simulated: Callable[..., object], name: str, documentation: str) -> None:
    parameters = list(inspect.signature(simulated).parameters)[1:]
    signatures = [re.findall(r"(?:^|, )(\w+): ", text) for text in re.findall(r"\((self: .*)\) ->", documentation)]
    assert ["self", *parameters] in signatures, f"{name}{signatures}"


@needs_rtx
def test_enums(machine, real: dict) -> None:
    for name, members in real["enums"].items():
        used = [member.name for member in getattr(machine.support, name)]
        assert set(used) <= set(members), name


@needs_rtx
def test_the_real_deserializer_without_a_gpu_is_one_line(tmp_path: Path) -> None:
    """A plan's tag and version, nothing behind them: what TensorRT logs comes out as one line, and no host code."""
    plan = tmp_path / "plan"
    plan.write_bytes(b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(200))
    said = _child(DESERIALIZE, str(plan))
    assert said["text"].startswith("e.engine:unet.plan: reading the plan failed (IRuntime::deserializeCudaEngine")
    assert (said["exit_code"], said["host"]) == (3, False) and "\n" not in said["text"]


def _cuda_functions(machine) -> dict[str, object]:
    return {name: value for name, value in _own(machine.support.CudaRuntime).items() if inspect.isfunction(value)}


def test_the_simulated_cuda_is_cuda_pythons(machine) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for name, value in _cuda_functions(machine).items():
        parameters = [p for p in inspect.signature(value).parameters if p != "self"]
        signature = getattr(runtime, name).__doc__.strip().splitlines()[0]
        inside = re.fullmatch(rf"{name}\((.*)\)", signature)
        assert inside is not None, signature
        # Written `size_t count`, `kind: cudaMemcpyKind` or `stream`.
        real = [part.split(":")[0].split()[-1] for part in inside[1].split(", ") if part]
        assert parameters == real, signature
    for status in machine.support.CudaError:
        assert getattr(runtime.cudaError_t, status.name).value == status.value
    assert runtime.cudaStreamNonBlocking == 1
    assert runtime.cudaEventBlockingSync == cuda_python._BLOCKING_SYNC
    for status in cuda_python._NO_DRIVER:
        assert status in runtime.cudaError_t.__members__


def test_the_backend_calls_only_what_is_simulated(machine) -> None:
    source = inspect.getsource(cuda_python)
    called = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(re.findall(r"_runtime\.(cuda[A-Z]\w+)\(", source))
    called = {name for name in called if not name.startswith("cudaError")}
    assert called - {"cudaStream_t"} == set(_cuda_functions(machine))


def _driver_functions(machine) -> dict[str, object]:
    return {name: value for name, value in _own(machine.support.CudaDriver).items() if name.startswith("cu")}


def test_the_simulated_driver_is_cuda_pythons(machine) -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, value in _driver_functions(machine).items():
        parameters = [p for p in inspect.signature(value).parameters if p != "self"]
        signature = getattr(driver, name).__doc__.strip().splitlines()[0]
        inside = re.fullmatch(rf"{name}\((.*)\)", signature)
        assert inside is not None, signature
        # Written `unsigned int gridDimX`, `char *name` or `hStream`.
        assert parameters == [part.split()[-1].lstrip("*") for part in inside[1].split(", ")], signature
    for status in machine.support.CUresult:
        assert getattr(driver.CUresult, status.name).value == status.value
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    # So that a stream of the one may be given to the other.
    assert issubclass(runtime.cudaStream_t, driver.CUstream)


def test_the_backend_calls_only_what_is_simulated_of_the_driver(machine) -> None:
    source = inspect.getsource(cuda_python)
    called = set(re.findall(r'self\._driver, self\._where, "(cu[A-Z]\w+)"', source))
    assert called == set(_driver_functions(machine))


def test_the_real_cuda_python_without_a_driver() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineMismatchError, match=r"e\.engine: no usable NVIDIA driver \(cudaError\w+\)") as caught:
        cuda_interface.open_cuda("cuda-python", None, "e.engine", "rtx")
    assert caught.value.exit_code == 3
    # What a stream, an address and an event are passed as is taken: CUDA itself answers, not a TypeError.
    for call in (
        lambda: runtime.cudaMemcpyAsync(4096, 4096, 8, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, None),
        lambda: runtime.cudaMallocHost(64),
        lambda: runtime.cudaFree(4096),
        lambda: runtime.cudaGetDeviceProperties(0),
        lambda: runtime.cudaEventRecord(runtime.cudaEvent_t(0), runtime.cudaStream_t(0)),
    ):
        assert call()[0] != runtime.cudaError_t.cudaSuccess


@needs_rtx
def test_the_command_with_the_real_libraries_and_no_gpu(
    intsr, machine, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU here")
    engine = machine.engine("tensorrt-rtx", plan_version=(1, 7, 1, 116))
    monkeypatch.undo()
    for arguments in (("upscale", engine, photo_path, "-o", tmp_path / "out.png"), ("bench", engine, "--alone")):
        code, out, err = intsr(*arguments)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert "no usable NVIDIA driver" in err and "intsr compile MODEL" in err
    assert "tensorrt_rtx" not in sys.modules, "it is loaded behind the checks"


@pytest.mark.parametrize(
    ("backend", "extra", "named"),
    [("cuda-python", "rtx", "cuda is not installed.*rtx"), ("pycuda", "rtx", "pycuda is not installed.*pycuda")],
)
def test_bindings_that_are_missing(backend: str, extra: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineMismatchError, match=rf"{named}\]") as caught:
        cuda_interface.open_cuda(backend, None, "e.engine", extra)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_bindings_that_lack_their_own_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text(
        "raise ImportError('libcuda.so.1: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineMismatchError, match=r"pycuda cannot be loaded \(libcuda.so.1.*intsr\[pycuda\]"):
        cuda_interface.open_cuda("pycuda", None, "e.engine", "rtx")
    monkeypatch.delitem(sys.modules, "pycuda")


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_tensorrt_that_is_missing(target: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
    with pytest.raises(EngineMismatchError, match=rf"is not installed.*intsr\[{extra}\]"):
        tensorrt_library.load_tensorrt(target, "e.engine")
