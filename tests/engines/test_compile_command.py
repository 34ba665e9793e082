"""`intsr compile` beyond building: its plan, the check against torch, and networks that were built before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from builds import built_in_this_process
from PIL import Image

from intsr.bundle import read_manifest
from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.engines.builders import cache as plan_cache
from intsr.engines.builders import child
from intsr.engines.builders.cache import PlanCache
from intsr.engines.builders.types import Build, BuildOptions, BuildReport
from intsr.engines.compile.assemble import compile_engine
from intsr.export.graphs import load_export
from intsr.export.pipeline import export_model
from intsr.targets import target_from_name
from intsr.targets.lowering import LOWERINGS

Intsr = Callable[..., tuple[int, str, str]]
TILE_PX = 16


@pytest.fixture(scope="module")
def export(tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric-cpu"], TILE_PX, folder)
    return folder


@pytest.fixture(autouse=True)
def _no_children() -> Iterator[None]:
    with built_in_this_process():
        yield


@pytest.fixture
def calibration(tiny_calibration: Calibration, tmp_path: Path) -> Path:
    save_calibration(tiny_calibration, tmp_path / "calibration")
    return tmp_path / "calibration"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_dry_run_says_what_an_export_has(
    intsr: Intsr, tiny_folder: Path, calibration: Path, export: Path, tmp_path: Path
) -> None:
    given = ("compile", tiny_folder, "--calibration", calibration, "--tile", f"{TILE_PX},8", "--dry-run", "--json")
    code, out, error = intsr(*given)
    assert code == 0, error
    plan = json.loads(out)
    assert [network["tile_px"] for network in plan["networks"]] == [TILE_PX] * 3 + [8] * 3
    for network, entry in zip(plan["networks"], load_export(export).networks, strict=False):
        assert (network["name"], tuple(network["input"])) == (entry.name, entry.input.shape)
        assert tuple(network["output"]) == entry.output.shape
        assert network["precision"] == "w8a8 in int8, the rest float32 or bf16"
    info = json.loads(intsr("info", tiny_folder, "--size", TILE_PX * 4, "--json")[1])
    assert sum(network["parameters"] for network in plan["networks"][:3]) == info["total"]["parameters"]
    assert plan["engine_bytes"] > info["total"]["parameters"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration"]


@pytest.mark.parametrize(
    ("arguments", "precisions", "bytes_per_parameter"),
    [
        (("--bits", "fp"), {"float32 or bf16"}, 4),
        (("--bits", "fp", "--target", "tensorrt-rtx"), {"fp16"}, 2),
        (
            ("--activations", "fp16", "--target", "tensorrt-rtx", "--bits", "w4a8"),
            {"weights of 4 bits in int8, the rest fp16"},
            1,
        ),
        (
            ("--images", "somewhere", "--parts", "unet", "--bits", "w6a6"),
            {"w6a6 in int8, the rest float32 or bf16", "float32 or bf16"},
            None,
        ),
    ],
)
def test_a_dry_run_of_each_source(
    intsr: Intsr, tiny_folder: Path, arguments: tuple[str, ...], precisions: set[str], bytes_per_parameter: int | None
) -> None:
    given = ("compile", tiny_folder, *arguments, "--tile", TILE_PX, "--dry-run")
    code, out, error = intsr(*given, "--json")
    assert code == 0, error
    plan = json.loads(out)
    assert {network["precision"] for network in plan["networks"]} == precisions
    parameters = sum(network["parameters"] for network in plan["networks"])
    if bytes_per_parameter is not None:
        extra_bytes = target_from_name(plan["target"]).extra_bytes
        assert plan["engine_bytes"] == extra_bytes + bytes_per_parameter * parameters
    lines = intsr(*given)[1].splitlines()
    assert len(lines) == 1 + 3 + 2 and lines[1].startswith("encoder") and "of memory" in lines[-1]


def test_a_dry_run_has_the_tiles_that_are_built(intsr: Intsr, tiny_folder: Path) -> None:
    """PassionSR's checkpoints are for one size."""
    for arguments, tiles in ((("--passionsr", "unet.pth", "vae.pth"), {128}), (("--bits", "fp"), {128, 64})):
        code, out, error = intsr("compile", tiny_folder, *arguments, "--dry-run", "--json")
        assert code == 0, error
        assert {network["tile_px"] for network in json.loads(out)["networks"]} == tiles


def test_a_dry_run_refuses_what_the_command_would(intsr: Intsr, calibration: Path) -> None:
    code, _, error = intsr("compile", "demo", "--calibration", calibration, "--dry-run")
    assert code == 2 and "made for a model with digest" in error and "or give the --lora and the like" in error, error


def test_without_an_output_there_is_only_a_dry_run(intsr: Intsr, tiny_folder: Path, export: Path) -> None:
    code, _, error = intsr("compile", tiny_folder, "--bits", "fp")
    assert code == 2 and "--output" in error
    code, _, error = intsr("compile", export, "--dry-run")
    assert code == 2 and "--dry-run: together with an export folder" in error


def test_only_an_engine_that_agrees_is_written_and_says_how_well(
    intsr: Intsr, tiny_folder: Path, calibration: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of an engine for a GPU.
    monkeypatch.setattr("intsr.engines.verify.check.target_from_name", lambda _: SimpleNamespace(gpu=True))
    monkeypatch.setattr("intsr.engines.verify.check.polygraphy_metrics", lambda *_: {"l2": 0.25})
    output = pictures.with_name("out") / "x.engine"
    given = ("compile", tiny_folder, "--calibration", calibration, "--tile", TILE_PX, "--target", "onnxruntime")
    code, out, error = intsr(*given, "-o", output, "--verify", pictures, "--json")
    assert code == 0, error
    agreement = json.loads(out)["agreement"]
    end_to_end, worst = agreement["end_to_end"]["psnr_db"], agreement["worst"]["psnr_db"]
    assert agreement["metrics"]["unet"] == {"l2": 0.25} and "unet        l2 0.25" in error
    assert f"against torch {end_to_end:.2f} dB, {worst:.2f} at worst" in error
    code, out, _ = intsr(
        *("verify", output, "--against", calibration, "--model", tiny_folder, "--images", pictures, "--json")
    )
    result = json.loads(out)
    assert code == 0 and result["end_to_end"]["psnr_db"] == end_to_end
    assert result["metrics"] == agreement["metrics"]
    assert sum(name.startswith("(made) ") for name in result["per_image_db"]) == 8 < len(result["per_image_db"])
    assert min(result["per_image_db"].values()) == pytest.approx(worst, abs=0.01)
    # One that does not agree is not written.
    before = output.read_bytes()
    code, _, error = intsr(*given, "-o", output, "--verify", pictures, "--min-psnr", "150")
    assert code == 1 and "expected at least 150 on every picture; no engine was written" in error
    assert [path.read_bytes() for path in output.parent.iterdir()] == [before]


def test_what_verifying_needs_is_looked_for_before_any_work(
    intsr: Intsr, tiny_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr("intsr.engines.compile.request.export_model", worked)
    given = ("compile", tiny_folder, "--bits", "fp", "-o", tmp_path / "x.engine", "--tile", TILE_PX)
    code, _, error = intsr(*given, "--verify", tmp_path / "nothing")
    assert code == 2 and "nothing" in error
    monkeypatch.setattr("intsr.engines.verify.check.list_devices", lambda: (["cpu"], "no driver"))
    monkeypatch.setattr("intsr.targets.target.find_spec", lambda _: True)
    code, _, error = intsr(*given, "--verify", pictures, "--target", "tensorrt-rtx")
    assert code == 2 and "--verify: an engine of target tensorrt-rtx cannot run here (no driver)" in error


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are really built with a cache."""
    names: list[str] = []

    def build(module: str, builds: list[Build]) -> list[BuildReport]:
        names.extend(build.onnx_path.stem for build in builds)
        return child.build_each_in_child(module, builds)

    monkeypatch.setattr(plan_cache, "build_each_in_child", build)
    return names


def test_what_was_built_before_is_not_built_again(
    intsr: Intsr, export: Path, tmp_path: Path, built: list[str]
) -> None:
    given = ("compile", export, "--target", "onnxruntime", "--cache", tmp_path / "cache", "-o")
    assert "built before" not in intsr(*given, tmp_path / "a.engine")[2]
    assert built == ["encoder", "unet", "decoder"]
    assert intsr(*given, tmp_path / "b.engine")[2].count("built before") == 3 == len(built)
    first, second = (read_manifest(tmp_path / f"{name}.engine") for name in ("a", "b"))
    assert first.sha256 == second.sha256 and first.build["plans"] == second.build["plans"]
    assert first.library_version == second.library_version


def test_another_weight_option_library_or_builder_is_another_build(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_from_name("onnxruntime")
    options, graph = BuildOptions("onnxruntime"), tmp_path / "unet.onnx"
    graph.write_bytes((export / "unet.onnx").read_bytes())

    def key(options: BuildOptions = options) -> str:
        return plan_cache._key(target, Build(graph, tmp_path / "plan", options))

    seen = [key()]
    assert key() == seen[0] == key(BuildOptions("onnxruntime", timing_cache=tmp_path))
    seen.append(key(BuildOptions("onnxruntime", workspace_bytes=1)))
    with monkeypatch.context() as patch:
        patch.setattr(plan_cache, "_builder_digest", lambda: "another")
        seen.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(plan_cache, "installed_version", lambda target: "0.1")
        seen.append(key())
    model = onnx.load(graph)
    onnx.save(model, graph, save_as_external_data=True, location="unet.data", size_threshold=0)
    seen.append(key())
    data = (tmp_path / "unet.data").read_bytes()
    (tmp_path / "unet.data").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    seen.append(key())
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize("harm", ["plan altered", "report of another kind"])
def test_a_broken_cache_is_built_anew(export: Path, tmp_path: Path, built: list[str], harm: str) -> None:
    cache = PlanCache(tmp_path / "cache")
    compile_engine(export, tmp_path / "a.engine", BuildOptions("onnxruntime"), cache=cache)
    for path in (tmp_path / "cache").iterdir():
        if harm.startswith("plan") and path.suffix == ".plan":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        elif harm.startswith("report") and path.suffix == ".json":
            path.write_text('{"report": [], "sha256": 1}')
    compile_engine(export, tmp_path / "b.engine", BuildOptions("onnxruntime"), cache=cache)
    assert len(built) == 6
    assert read_manifest(tmp_path / "a.engine").sha256 == read_manifest(tmp_path / "b.engine").sha256
