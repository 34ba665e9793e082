from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from intsr.engines.builders import rtx_bindings
from intsr.engines.builders.child import build_in_child
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError, MissingLibraryError

PROJECT = Path(__file__).parents[2]


def test_the_report_says_what_built_it_and_for_which_gpus(resblock_build: tuple[BuildReport, Path]) -> None:
    report, _ = resblock_build
    assert report.library == "tensorrt-rtx"
    # NVIDIA's own bindings, where they are installed, give the number of the build as well.
    assert report.library_version.split(".")[:3] == ["1", "7", "1"]
    # What NVIDIA's support matrix says of plans by default; 12.1 and 10.0 are not among them.
    assert report.gpu_architecture == "sm86,sm89,sm120"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware_compatibility": "same-compute-capability"}, "its plans run on all RTX GPUs"),
        ({"compute_capabilities": (89,)}, "cannot be chosen with the bindings of PyPI"),
        ({"timing_cache": "timing.cache"}, "a timing cache; expected none: it measures no kernels"),
    ],
)
def test_what_it_cannot_do_is_said(build_rtx, graphs: ModuleType, options: dict[str, object], message: str) -> None:
    if "compute_capabilities" in options and find_spec("tensorrt_rtx") is not None:
        pytest.skip("NVIDIA's own tensorrt_rtx is installed, which can")
    with pytest.raises(BuildError, match=message):
        build_rtx(graphs.resblock(16, 8), **options)


@pytest.mark.parametrize("target", ["tensorrt-rtx", "cpu"])
def test_the_command_refuses_a_timing_cache_that_would_change_nothing(
    intsr: Callable[..., tuple[int, str, str]], tmp_path: Path, target: str
) -> None:
    given = ("--bits", "fp", "--target", target, "--timing-cache", tmp_path / "t")
    code, out, err = intsr("compile", "demo", *given, "-o", tmp_path / "e.engine")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"--timing-cache: together with --target {target}; expected target tensorrt" in err


def test_pinned_versions_are_those_of_setup() -> None:
    setup = (PROJECT / "setup.py").read_text()
    for distribution, version in rtx_bindings.PINNED.items():
        assert f'"{distribution}=={version}"' in setup


def test_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.6.0")
    with pytest.raises(BuildError, match=r"cu13 0\.6\.0; expected exactly 0\.5\.0; install it with: pip install"):
        rtx_bindings.check_pinned_versions()


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingLibraryError, match=r"cu13 is not installed; .*intsr\[rtx\]"):
        rtx_bindings.check_pinned_versions()


def test_nvidias_own_bindings_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.9.0.1'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module, version = rtx_bindings.load()
    # Not by monkeypatch, which would put it back for every test that follows.
    del sys.modules["tensorrt_rtx"]
    assert rtx_bindings.is_official(module) and version == "1.9.0.1"


def test_the_shim_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    libraries = rtx_bindings.shim_libraries()
    assert [path.name for path in libraries] == [
        "libnvinfer.so.11",
        "libnvinfer_plugin.so.11",
        "libnvonnxparser.so.11",
    ]
    for path in libraries:
        assert path.name.encode() in path.read_bytes(), "its soname"
    times = [path.stat().st_mtime_ns for path in libraries]
    monkeypatch.setenv("CC", "false")
    assert [path.stat().st_mtime_ns for path in rtx_bindings.shim_libraries()] == times
    assert [path.name for path in (tmp_path / "intsr").iterdir()] == [libraries[0].parent.name]


def test_a_compiler_that_fails_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(\"it is broken\")'")
    with pytest.raises(BuildError, match=r"failed on shim\.c: it is broken; name a working C compiler"):
        rtx_bindings.shim_libraries()
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(BuildError, match=r"failed on shim\.c: .*No such file"):
        rtx_bindings.shim_libraries()
    assert list((tmp_path / "intsr").iterdir()) == []


def test_compilers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(rtx_bindings.shutil, "which", lambda name: f"/bin/{name}" if name == "clang" else None)
    assert rtx_bindings._compiler() == ["/bin/clang"]
    monkeypatch.setenv("CC", "ccache gcc -m64")
    assert rtx_bindings._compiler() == ["ccache", "gcc", "-m64"]
    monkeypatch.delenv("CC")
    monkeypatch.setattr(rtx_bindings.shutil, "which", lambda name: None)
    monkeypatch.setattr(rtx_bindings.util, "find_spec", lambda name: name == "ziglang" or None)
    assert rtx_bindings._compiler() == [sys.executable, "-m", "ziglang", "cc"]
    monkeypatch.setattr(rtx_bindings.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"no C compiler; .*pip install ziglang"):
        rtx_bindings._compiler()


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"cannot write here .*set XDG_CACHE_HOME"):
        rtx_bindings.shim_libraries()


def test_bindings_never_reach_the_parent(resblock_build: tuple[BuildReport, Path]) -> None:
    assert "tensorrt_bindings" not in sys.modules and "onnxruntime_ep_nv_tensorrt_rtx" not in sys.modules


def test_a_crash_in_the_library_is_one_line(
    graphs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A call on which the two libraries' ABIs differ kills the child, and only the child."""
    (tmp_path / "crashing.py").write_text(
        "from intsr.engines.builders import rtx_bindings\n"
        "from intsr.engines.builders.tensorrt_common import make_logger\n"
        "def build(onnx_path, plan_path, options):\n"
        "    trt, _ = rtx_bindings.load()\n"
        "    network = trt.Builder(make_logger(trt)[0]).create_network(0)\n"
        "    network.add_input('x', trt.float16, (1, 2)).is_execution_tensor\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    onnx_path = graphs.resblock(16, 8).save(tmp_path / "network.onnx")
    with pytest.raises(BuildError, match=r"the builder crashed \(SIG[A-Z]+\)"):
        build_in_child("crashing", onnx_path, tmp_path / "out" / "network.plan", BuildOptions("tensorrt-rtx"))
    assert list((tmp_path / "out").iterdir()) == []
