"""Exported graphs compiled, opened and compared, through the same functions that the commands call."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from builds import built_in_this_process

from intsr.bundle import Bundle, read_manifest
from intsr.calib.calibration.types import Calibration
from intsr.calib.methods.maxmin import symmetric_range
from intsr.calib.models.open import SRModel
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import KERNELS_MEMBER, compile_engine
from intsr.engines.inspect.engine import compare_plans, inspect_engine
from intsr.engines.verify.agreement import verify
from intsr.engines.verify.reference import reference_from_calibration
from intsr.errors import BuildError, ExportError, UsageError
from intsr.export.pipeline import export_model
from intsr.runtime.backends.openvino.int8 import EIGHT_BITS, largest_exact_code
from intsr.runtime.engine import open_engine
from intsr.targets.lowering import LOWERINGS

TILE_PX = 16


@pytest.fixture(scope="module")
def exports(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    for name in ("asymmetric", "symmetric-rtx", "weight-only"):
        export_model(tiny_model, tiny_calibration, LOWERINGS[name], TILE_PX, folder / name)
    export_model(tiny_model, None, LOWERINGS["asymmetric"], TILE_PX, folder / "fp")
    export_model(tiny_model, None, LOWERINGS["symmetric-rtx"], TILE_PX, folder / "fp-rtx")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cpu_engine(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tiny.engine"
    compile_engine(exports["asymmetric"], path, BuildOptions("cpu"))
    return path


@pytest.fixture(scope="module")
def rtx_engine(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("the rtx extra is not installed")
    path = tmp_path_factory.mktemp("engine") / "tiny.rtx.engine"
    compile_engine(exports["symmetric-rtx"], path, BuildOptions("tensorrt-rtx"))
    return path


@pytest.fixture(scope="module")
def fp_rtx_engine(rtx_engine: Path, exports: dict[str, Path]) -> Path:
    path = rtx_engine.with_name("fp.rtx.engine")
    compile_engine(exports["fp-rtx"], path, BuildOptions("tensorrt-rtx"))
    return path


def test_manifest_of_a_cpu_engine(cpu_engine: Path, tiny_calibration: Calibration) -> None:
    manifest = read_manifest(cpu_engine)
    assert (manifest.target, manifest.bits, manifest.method) == ("cpu", "w8a8", "maxmin")
    assert manifest.library == "openvino" and manifest.library_version.startswith("20")
    assert manifest.calibration_digest == tiny_calibration.digest()
    assert (manifest.tile_px, manifest.overlap_px, manifest.upscale_factor) == (TILE_PX, 8, 4)
    with zipfile.ZipFile(cpu_engine) as archive:
        assert archive.namelist() == ["manifest.json", "encoder.ir", "unet.ir", "decoder.ir"]


def test_the_plan_says_how_much_is_integer(cpu_engine: Path) -> None:
    report = inspect_engine(cpu_engine, layers=True)
    assert [plan["name"] for plan in report["networks"]] == ["encoder", "unet", "decoder"]
    floats = {layer["name"] for plan in report["networks"] for layer in plan["float_layers"]}
    assert "vae.encoder.conv_in" in floats
    # What runs on this machine.
    exact = largest_exact_code() == EIGHT_BITS
    assert report["total"]["int8_mac_share"] >= 0.95 if exact else report["total"]["int8_mac_share"] == 0
    assert any("resnets" in name for name in floats) is not exact
    assert report["total"]["kernels"] == sum(plan["kernels"] for plan in report["networks"])
    assert report["total"]["weight_bytes"] > 0 and report["total"]["activation_bytes"] > 0
    assert "networks" not in inspect_engine(cpu_engine, layers=False)


def test_products_on_grids_around_zero_count_as_integer_too(
    cpu_engine: Path, tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    around_zero = {site: symmetric_range(quantizer) for site, quantizer in tiny_calibration.sites.items()}
    calibration = replace(tiny_calibration, sites=around_zero)
    export_model(tiny_model, calibration, LOWERINGS["asymmetric-cpu"], TILE_PX, tmp_path / "onnx")
    with built_in_this_process():
        compile_engine(tmp_path / "onnx", tmp_path / "x.engine", BuildOptions("cpu"))
    report, as_usual = (inspect_engine(path, layers=True) for path in (tmp_path / "x.engine", cpu_engine))
    assert report["total"]["int8_mac_share"] == as_usual["total"]["int8_mac_share"]
    for plan in report["networks"]:
        assert not [layer["name"] for layer in plan["float_layers"] if layer["precision"] == "unknown"]


def test_engines_agree_with_their_references(
    exports: dict[str, Path],
    cpu_engine: Path,
    tiny_model: SRModel,
    tiny_calibration: Calibration,
    tmp_path: Path,
) -> None:
    with built_in_this_process():
        compile_engine(exports["fp"], tmp_path / "fp.engine", BuildOptions("cpu"), precision="f32")
    rng = np.random.default_rng(6)
    inputs = [(name, rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)) for name in "ab"]
    # A random network amplifies every rounding that falls the other way; the demonstration model is held to more.
    for path, calibration, least_db in ((cpu_engine, tiny_calibration, 30), (tmp_path / "fp.engine", None, 90)):
        reference = reference_from_calibration(tiny_model, calibration, TILE_PX)
        with open_engine(path, precision="f32") as engine:
            result = verify(engine, reference, inputs)
        assert all(network.psnr_db > least_db for network in result.networks), result
        assert result.end_to_end.psnr_db > 80 or calibration is not None
        assert set(result.per_image_db) == {"a", "b"}


def test_an_rtx_engine_of_all_three_networks(rtx_engine: Path) -> None:
    report = inspect_engine(rtx_engine, layers=True)
    assert report["total"]["int8_mac_share"] >= 0.95
    assert report["total"]["fp32_gemms"] == 0
    assert report["manifest"]["gpu_architecture"].startswith("sm")
    with Bundle(rtx_engine) as bundle:
        assert set(bundle.sizes_bytes()) == {"encoder.plan", "unet.plan", "decoder.plan", KERNELS_MEMBER}
        for name in ("encoder", "unet", "decoder"):
            with bundle.member(f"{name}.plan") as view:
                assert len(view) > 100_000
        with bundle.member(KERNELS_MEMBER) as view:
            kernels = json.loads(bytes(view))
    assert len(kernels["unet"]) == next(p["kernels"] for p in report["networks"] if p["name"] == "unet")
    # One stream: nothing waits for another.
    assert not {"signal", "wait"} & set(report["total"]["kernels_by_kind"])


@pytest.mark.slow
def test_int8_takes_few_kernels_more_than_fp16(rtx_engine: Path, fp_rtx_engine: Path) -> None:
    report = inspect_engine(rtx_engine, layers=True)
    ratios = {ratio["name"]: ratio for ratio in compare_plans(report, fp_rtx_engine)}
    assert set(ratios) == {"encoder", "unet", "decoder", "total"}
    assert all(ratio["kernels"] <= 1.35 for ratio in ratios.values()), ratios
    # Quantizers sit in the kernels that make their input; one head of attention and networks' inputs are exceptions.
    assert report["total"]["quantize_kernels"] <= 0.03 * report["total"]["kernels"]


@pytest.mark.slow
def test_weight_only_needs_no_calibration(
    intsr: Callable[..., tuple[int, str, str]], tiny_folder: Path, rtx_engine: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w.engine"
    given = ("compile", tiny_folder, "--activations", "fp16", "--tile", TILE_PX, "-o", path)
    code, _, error = intsr(*given, "--target", "cpu")
    assert code == 2 and "--activations: together with --target cpu" in error
    code, _, error = intsr(*given, "--target", "tensorrt-rtx")
    assert code == 0, error
    manifest = read_manifest(path)
    assert (manifest.method, manifest.bits) == ("static", "w8a16")
    code, output, error = intsr("inspect", path, "--layers", "--against", rtx_engine)
    assert code == 0, error
    assert "with weight-only layers 9" in output and f"total    against {rtx_engine}: kernels x " in output


@pytest.mark.slow
def test_a_weight_only_engine_says_so(exports: dict[str, Path], rtx_engine: Path, tmp_path: Path) -> None:
    manifest = compile_engine(exports["weight-only"], tmp_path / "w.engine", BuildOptions("tensorrt-rtx"))
    assert manifest.bits == "w8a16"
    report = inspect_engine(tmp_path / "w.engine", layers=True)
    assert report["total"]["int8_mac_share"] == 0.0 and report["total"]["int8_weight_share"] > 0.95


def test_graphs_of_another_lowering_are_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="export again with --target tensorrt-rtx"):
        compile_engine(exports["asymmetric"], tmp_path / "x.engine", BuildOptions("tensorrt-rtx"))
    with pytest.raises(UsageError, match="lowered as weight-only"):
        compile_engine(exports["weight-only"], tmp_path / "x.engine", BuildOptions("cpu"))
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing(exports: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exports["asymmetric"], tmp_path / "onnx"))
    # A graph that ONNX reads and OpenVINO does not: the second network, so that one was already built.
    model = onnx.load(broken / "unet.onnx")
    model.graph.node[0].op_type = "NoSuchOperation"
    onnx.save(model, broken / "unet.onnx")
    output = tmp_path / "out" / "x.engine"
    with pytest.raises((BuildError, ExportError)) as error:
        compile_engine(broken, output, BuildOptions("cpu"))
    assert "\n" not in str(error.value)
    assert not list(output.parent.iterdir())


def test_a_missing_library_is_named_before_any_work(
    intsr: Callable[..., tuple[int, str, str]], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: object) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr("intsr.engines.compile.request.export_model", export)
    monkeypatch.setattr("intsr.targets.target.find_spec", lambda _: None)
    for target, missing in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
        monkeypatch.delitem(sys.modules, missing, raising=False)
        code, _, error = intsr(
            *("compile", tiny_folder, "--bits", "fp", "--target", target, "-o", tmp_path / "x.engine")
        )
        assert code == 2
        assert f"target {target}: {missing} is not installed; install it with: pip install" in error
    assert list(tmp_path.iterdir()) == []
