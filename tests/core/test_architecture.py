"""The house: what may be imported where, no crowded folder, and a map that names every folder and every theorem."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
STAGES = ("runtime", "kernels", "calib", "export", "engines")
MOST_MODULES = 20


def _imports(folder: Path) -> dict[str, list[str]]:
    """Module -> the modules that it imports anywhere in it, of the tree as one package. folder: for links."""
    package = folder / "intsr"
    package.mkdir()
    for path in (*(PROJECT / "core").iterdir(), *(PROJECT / stage for stage in STAGES)):
        (package / path.name).symlink_to(path)
    code = (
        "import grimp, json; graph = grimp.build_graph('intsr', cache_dir=None)\n"
        "print(json.dumps({m: sorted(graph.find_modules_directly_imported_by(m)) for m in graph.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(run.stdout)


def test_no_modules_import_each_other_in_a_circle(tmp_path):
    pytest.importorskip("grimp", reason="needs import-linter, of the extra dev")
    imports = _imports(tmp_path)
    assert len(imports) > 200
    assert "intsr.errors" in imports["intsr.runtime.engine"]
    # `intsr` itself imports `runtime.engine` when that is asked for, and nothing before.
    assert imports.pop("intsr") == ["intsr.runtime.engine"]
    TopologicalSorter(imports).prepare()


def _product_folders() -> dict[str, int]:
    """Folder, relative to the project -> its modules without `__init__`."""
    found: dict[str, int] = {}
    for stage in ("core", *STAGES):
        for path in (PROJECT / stage).rglob("*.py"):
            name = path.parent.relative_to(PROJECT).as_posix()
            found[name] = found.get(name, 0) + (path.name != "__init__.py")
    return found


def test_no_folder_is_crowded():
    folders = _product_folders()
    assert {"core", "runtime/pictures/formats", "calib/methods"} <= folders.keys()
    assert {name: count for name, count in folders.items() if count > MOST_MODULES} == {}


def test_the_map_names_every_folder():
    page = (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+)`", page))
    # A folder may be named by itself, or by its last name in the row of the one above it.
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    missing = [
        name
        for name in _product_folders()
        if name not in named
        and not name.endswith("/commands")
        and f"`{Path(name).name}`" not in rows.get(Path(name).parent.as_posix(), "")
    ]
    assert missing == []


def test_what_the_code_says_of_the_theory_is_there():
    headings = set(re.findall(r"^## (.+)$", (PROJECT / "docs/theory.md").read_text(encoding="utf-8"), re.MULTILINE))
    cited: list[tuple[str, str]] = []
    for stage in ("core", *STAGES, "tests"):
        for path in (*(PROJECT / stage).rglob("*.py"), *(PROJECT / stage).rglob("*.cu*")):
            if path == Path(__file__):
                continue
            text = re.sub(r"\n\s*(#|//|\*)?\s*", " ", path.read_text(encoding="utf-8"))
            citations = re.findall(r'docs/theory\.md, ((?:"[^"]+"(?:, | and )?)+)', text)
            assert len(citations) == text.count("theory.md"), f'{path}: cite as docs/theory.md, "Heading"'
            cited += [(path.name, title) for titles in citations for title in re.findall(r'"([^"]+)"', titles)]
    assert len(cited) > 15
    assert [(name, title) for name, title in cited if title not in headings] == []


def test_no_code_refers_to_a_page_outside_the_repository():
    outside = re.compile(r"\b(METHODS|DESIGN|LAYOUT|LOWBIT|MODELS|SCALE|USERS|STYLE|TENSORRT)(\.md| sections?\b)")
    for stage in ("core", *STAGES, "tests", "docs", "examples", "integrations"):
        for path in (PROJECT / stage).rglob("*"):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".md") and path != Path(__file__):
                assert outside.search(path.read_text(encoding="utf-8")) is None, path


COMPILER_LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    *("polygraphy", "skimage", "scipy", "pyiqa", "tensorrt", "tensorrt_bindings"),
)
# The window itself, which needs the extra `app`: tests/runtime/test_app_window.py opens it.
OF_THE_WINDOW = {f"intsr.runtime.app.{name}" for name in ("guard", "page", "routes", "serve")}
# What a command's --help must not wait for.
SLOW_LIBRARIES = ("numpy", "PIL", "openvino", "rich")


def _modules() -> list[str]:
    """Every module but __main__, which runs the command, and those of the window."""
    found = []
    for stage in ("core", *STAGES):
        for path in (PROJECT / stage).rglob("*.py"):
            parts = path.relative_to(PROJECT / stage).with_suffix("").parts
            name = ".".join(("intsr", *(() if stage == "core" else (stage,)), *parts))
            found.append(name.removesuffix(".__init__"))
    assert set(found) >= OF_THE_WINDOW
    return sorted(set(found) - OF_THE_WINDOW - {"intsr.__main__"})


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


def test_only_gpu_engines_bring_the_kernels_package() -> None:
    # Everything else of the runtime imports where it is not there at all.
    names = [name for name in _modules() if name.startswith("intsr.runtime.") and ".tensorrt.picture_" not in name]
    assert len(names) > 50
    assert _failures([(names, ("intsr.kernels",))]) == [{}]


def test_what_pictures_need_of_the_kernels_is_numpy() -> None:
    pipeline = "intsr.runtime.backends.tensorrt.picture_pipeline"
    assert _failures([([pipeline], ("torch", "onnx", "tensorrt", "cuda", "pycuda", "scipy"))]) == [{}]
