"""Every module imports, and those of the runtime import where nothing of the compiler is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER_LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    *("polygraphy", "skimage", "scipy", "pyiqa", "tensorrt", "tensorrt_bindings"),
)
# What a command's --help must not wait for.
SLOW_LIBRARIES = ("numpy", "PIL", "openvino", "rich")
PROJECT = Path(__file__).parents[2]
STAGES = ("runtime", "kernels", "calib", "export", "engines")


def _modules() -> list[str]:
    """Every module but __main__, which runs the command."""
    found = []
    for stage in ("core", *STAGES):
        for path in (PROJECT / stage).rglob("*.py"):
            parts = path.relative_to(PROJECT / stage).with_suffix("").parts
            name = ".".join(("intsr", *(() if stage == "core" else (stage,)), *parts))
            found.append(name.removesuffix(".__init__"))
    return sorted(set(found) - {"intsr.__main__"})


def _failures(phases: list[tuple[list[str], tuple[str, ...]]]) -> list[dict[str, str]]:
    """Import modules in one fresh interpreter, phase after phase, where the phase's libraries are not to be had."""
    code = """
import importlib, json, sys
answers = []
for modules, blocked in json.loads(sys.argv[1]):
    sys.modules.update(dict.fromkeys(blocked))
    answers.append({})
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            answers[-1][name] = repr(error)
    for name in blocked:
        del sys.modules[name]
print(json.dumps(answers))
"""
    arguments = [sys.executable, "-c", code, json.dumps(phases)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    answers: list[dict[str, str]] = json.loads(run.stdout.splitlines()[-1])
    return answers


def test_runtime_and_commands_import_without_what_they_do_not_need() -> None:
    modules = _modules()
    commands = [name for name in modules if ".commands" in name]
    others = tuple(f"intsr.{stage}" for stage in STAGES if stage != "runtime")
    lower = [name for name in modules if not name.startswith(others)]
    assert {"intsr.engines.commands.report", "intsr.calib.commands.info"} <= set(commands)
    assert {"intsr", "intsr.types", "intsr.cli.main", "intsr.runtime.engine"} <= set(lower)
    compiler = "intsr.calib.models.cost"
    phases = [
        (commands, (*COMPILER_LIBRARIES, *SLOW_LIBRARIES)),
        (lower, COMPILER_LIBRARIES),
        ([compiler], COMPILER_LIBRARIES),
    ]
    without_slow, without_compiler, noticed = _failures(phases)
    assert without_slow == {}
    assert without_compiler == {}
    assert set(noticed) == {compiler}, "a library that is blocked would not be noticed"


@pytest.mark.slow
def test_every_module_imports() -> None:
    assert _failures([(_modules(), ())]) == [{}]
