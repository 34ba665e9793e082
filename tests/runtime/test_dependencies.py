"""The runtime works where torch, diffusers and onnx are not installed, and help costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WITHOUT = """
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors"):
    sys.modules[name] = None
"""


def _run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_runtime_module_imports_without_the_compiler() -> None:
    code = f"""{_WITHOUT}
import importlib, pkgutil, intsr.runtime
for module in pkgutil.walk_packages(intsr.runtime.__path__, "intsr.runtime."):
    importlib.import_module(module.name)
    print(module.name)
"""
    result = _run(code)
    assert result.returncode == 0, result.stderr
    assert "intsr.runtime.commands.upscale" in result.stdout.split()


def test_a_cpu_engine_upscales_without_the_compiler(make_engine, photo_path: Path, tmp_path: Path) -> None:
    code = f"{_WITHOUT}\nfrom intsr.cli import main\nmain()"
    output = tmp_path / "out.png"
    result = _run(code, "upscale", make_engine("cpu"), photo_path, "-o", output)
    assert result.returncode == 0, result.stderr
    assert output.is_file()


def test_help_imports_no_numpy() -> None:
    code = """
import sys
from intsr.cli import main
try:
    main()
finally:
    heavy = {"numpy", "PIL", "rich", "openvino", "torch", "onnx", "onnxruntime"} & set(sys.modules)
    assert not heavy, heavy
"""
    for arguments in (["--help"], ["upscale", "--help"], ["bench", "--help"], ["--version"]):
        result = _run(code, *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout
