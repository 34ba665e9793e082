"""Every module imports, and those of the runtime import where nothing of the compiler is installed."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import intsr

COMPILER_LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "polygraphy",
    "skimage",
    "scipy",
    "pyiqa",
    "tensorrt",
    "tensorrt_rtx",
)
PROJECT = Path(__file__).parents[2]
STAGES = ("runtime", "kernels", "calib", "export", "engines")


def _modules() -> list[str]:
    """Every module but __main__, which runs the command. An editable install maps each stage on its own."""
    packages = [intsr, *(importlib.import_module(f"intsr.{stage}") for stage in STAGES)]
    found = {package.__name__ for package in packages}
    for package in packages:
        found |= {module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    return sorted(found - {"intsr.__main__"})


def _failures(modules: list[str], blocked: tuple[str, ...]) -> dict[str, str]:
    """Import each module in one fresh interpreter, where `blocked` libraries are not to be had."""
    code = """
import importlib, json, sys
modules, blocked = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
failures = {}
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = repr(error)
print(json.dumps(failures))
"""
    arguments = [sys.executable, "-c", code, json.dumps([modules, blocked])]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_the_walk_finds_every_stage():
    files = {f"intsr.{stage}.{path.stem}" for stage in STAGES for path in (PROJECT / stage).glob("[!_]*.py")}
    files |= {
        f"intsr.{stage}.commands.{path.stem}"
        for stage in STAGES
        for path in (PROJECT / stage).glob("commands/[!_]*.py")
    }
    files |= {f"intsr.{path.stem}" for path in (PROJECT / "core").glob("[!_]*.py")}
    assert len(files) > 40
    assert files <= set(_modules())


def test_runtime_and_core_import_without_the_compilers_libraries():
    others = tuple(f"intsr.{stage}" for stage in STAGES if stage != "runtime")
    modules = [name for name in _modules() if not name.startswith(others)]
    assert {"intsr", "intsr.types", "intsr.runtime", "intsr.runtime.commands.evaluate"} <= set(modules)
    assert _failures(modules, COMPILER_LIBRARIES) == {}


def test_every_command_module_imports_without_any_heavy_library():
    commands = [name for name in _modules() if ".commands" in name]
    assert _failures(commands, (*COMPILER_LIBRARIES, "numpy", "PIL", "openvino", "rich")) == {}


def test_a_blocked_library_would_be_noticed():
    assert set(_failures(["intsr.calib.models.cost", "intsr.errors"], ("torch",))) == {"intsr.calib.models.cost"}


def test_every_module_imports():
    assert _failures(_modules(), ()) == {}
