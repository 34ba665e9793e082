"""Building graphs with plugins: registered before the parser looks for them, and written into the manifest."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from intsr.bundle import read_manifest
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.engines.builders import tensorrt_common, tensorrt_rtx
from intsr.engines.builders.onnx_layers import plugin_counts
from intsr.engines.builders.tensorrt_common import BuilderLibrary, build_plan
from intsr.engines.builders.types import Build, BuildOptions, BuildReport
from intsr.engines.compile import assemble as compiler
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import BuildError, EngineMismatchError, UsageError
from intsr.export.pipeline import export_model
from intsr.kernels import tensorrt_plugin
from intsr.runtime.backends.tensorrt.plan_header import check_plugins
from intsr.targets import lowering_from_name


@pytest.fixture(scope="module")
def exported(tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "plugins"
    export_model(tiny_model, tiny_calibration, lowering_from_name("tensorrt", ("group-norm",)), 16, folder)
    return folder


class FakeTensorRT:
    """The calls of `build_plan`, in order."""

    __name__, __version__ = "tensorrt", "11.4.0.106"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    class ILogger:
        def __init__(self) -> None:
            pass

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parsed: dict[str, int] = {}
        self.architecture = 0

    def register(self, module: Any, architecture: int) -> None:
        assert module is self
        self.calls.append("register")
        self.architecture = architecture

    def Builder(self, logger: Any) -> Any:
        return SimpleNamespace(create_network=lambda flags: self.calls.append(f"flags {flags}"))

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(path: str) -> bool:
            self.calls.append("parse")
            self.parsed = plugin_counts(onnx.load(path, load_external_data=False))
            return True

        return SimpleNamespace(parse_from_file=parse)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    monkeypatch.setattr(tensorrt_plugin, "register_plugins", fake.register)
    plan = struct.pack("<I", 0x74727466) + bytes(60)
    monkeypatch.setattr(tensorrt_common, "_serialized_plan", lambda library, parsed, options: plan)
    return fake


@pytest.mark.parametrize(("architecture", "ptx"), [("sm90", 90), ("sm80+", 80)])
def test_plugins_are_registered_for_the_plans_gpu_before_parsing(
    exported: Path, tmp_path: Path, tensorrt: FakeTensorRT, architecture: str, ptx: int
) -> None:
    library = BuilderLibrary(tensorrt, "tensorrt", tensorrt.__version__, architecture)
    report = build_plan(library, exported / "unet.onnx", tmp_path / "p", BuildOptions("tensorrt", detailed=False))
    assert tensorrt.calls == ["register", "flags 0", "parse"] and tensorrt.architecture == ptx
    assert tensorrt.parsed["group_norm_silu_quantize"] > 0
    layers = {plugin["name"]: plugin["layers"] for plugin in report.plan["plugins"]}
    assert layers == {f"intsr::{name}": count for name, count in tensorrt.parsed.items()}


def test_plain_graphs_register_nothing(tmp_path: Path, graphs: Any, tensorrt: FakeTensorRT) -> None:
    path = graphs.resblock(16, 8).save(tmp_path / "network.onnx")
    library = BuilderLibrary(tensorrt, "tensorrt", "10.13.0", "sm89")
    report = build_plan(library, path, tmp_path / "p", BuildOptions("tensorrt", detailed=False))
    # TensorRT 10 must be told to be strongly typed.
    assert tensorrt.calls == ["flags 2", "parse"] and report.plan == {}


def test_the_manifest_says_which_plugins_a_plan_has(
    exported: Path, tmp_path: Path, tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = BuilderLibrary(tensorrt, "tensorrt", tensorrt.__version__, "sm90")

    def build(module: str, builds: list[Build]) -> list[BuildReport]:
        return [build_plan(library, each.onnx_path, each.plan_path, each.options) for each in builds]

    monkeypatch.setattr(compiler, "build_each_in_child", build)
    compile_engine(exported, tmp_path / "e.engine", BuildOptions("tensorrt", detailed=False))
    manifest = read_manifest(tmp_path / "e.engine")
    for name in ("encoder", "unet", "decoder"):
        (plugin, *_) = manifest.build["plans"][name]["plugins"]
        assert plugin["name"] == "intsr::group_norm_silu_quantize" and plugin["compiled"] == "ahead-of-time"
        assert plugin["version"] == "1" and plugin["layers"] > 0
    check_plugins(manifest, "e.engine")
    plugin["compiled"] = "when it runs"
    with pytest.raises(EngineMismatchError, match=r"decoder needs plugin .* compiled when it runs; expected plugins"):
        check_plugins(manifest, "e.engine")


def test_tensorrt_rtx_refuses_them_in_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="lowered as symmetric-plugins; expected symmetric-rtx"):
        compile_engine(exported, tmp_path / "e.engine", BuildOptions("tensorrt-rtx"))
    monkeypatch.setattr(tensorrt_rtx, "require", lambda name, what: SimpleNamespace(__version__="1.7.1.116"))
    with pytest.raises(
        BuildError, match=r"tensorrt-rtx: graphs with plugins; expected plain ones.*without --plugins"
    ):
        tensorrt_rtx.build(exported / "unet.onnx", tmp_path / "p", BuildOptions("tensorrt-rtx"))
    assert not (tmp_path / "p").exists()
