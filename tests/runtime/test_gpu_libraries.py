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
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

import fake_tensorrt
import pytest

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


@needs_rtx
def test_the_command_with_the_real_libraries_and_no_gpu(
    intsr, machine, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if find_library("cuda"):
        pytest.skip("there is a driver here")
    engine = machine.engine("tensorrt-rtx", plan_version=(1, 7, 1, 116))
    monkeypatch.undo()
    for arguments in (("upscale", engine, photo_path, "-o", tmp_path / "out.png"), ("bench", engine, "--alone")):
        code, out, err = intsr(*arguments)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert "no usable NVIDIA driver" in err and "intsr compile MODEL" in err
    assert "tensorrt_rtx" not in sys.modules, "it is loaded behind the checks"


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_tensorrt_that_is_missing(target: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
    with pytest.raises(EngineMismatchError, match=rf"is not installed.*intsr\[{extra}\]"):
        tensorrt_library.load_tensorrt(target, "e.engine")
