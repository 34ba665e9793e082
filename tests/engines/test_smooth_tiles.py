"""Flat and smooth tiles through compiled engines: what photographs hide."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
from builds import built_in_this_process
from safetensors.torch import load_file, save_file

from intsr.calib.data.pictures import verification_inputs
from intsr.calib.models.open import SRModel, load_model
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.engines.report.measure.picture_scores import smooth_scores
from intsr.engines.verify.agreement import verify
from intsr.engines.verify.reference import reference_from_calibration
from intsr.export.pipeline import export_model
from intsr.runtime.engine import open_engine
from intsr.targets import lowering_from_name

TILE_PX = 64


def full_precision_engine(model: SRModel, folder: Path, tile_px: int) -> Path:
    export_model(model, None, lowering_from_name("cpu"), tile_px, folder / "onnx")
    with built_in_this_process():
        compile_engine(folder / "onnx", folder / "fp.engine", BuildOptions("cpu", detailed=False))
    return folder / "fp.engine"


@pytest.fixture(scope="module")
def demo_engine(demo_model: SRModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_precision_engine(demo_model, tmp_path_factory.mktemp("demo-fp"), TILE_PX)


@pytest.mark.parametrize(("precision", "least_db"), [("f32", 80), ("bf16", 40)])
def test_the_demonstration_model(demo_engine: Path, demo_model: SRModel, precision: str, least_db: int) -> None:
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no BF16")
    with open_engine(demo_engine, precision=precision) as engine:
        inputs = verification_inputs((), demo_model.spec, TILE_PX)
        result = verify(engine, reference_from_calibration(demo_model, None, TILE_PX), inputs)
    assert result.worst[1] >= least_db, result.per_image_db
    assert precision != "f32" or result.end_to_end.max_abs_error < 2 / 255


@pytest.mark.slow
def test_a_random_model_with_large_biases(tiny_folder: Path, tmp_path: Path) -> None:
    """Means far from 0 in front of every norm: E[x^2] - E[x]^2 has no digit of the variance there."""
    folder, tile_px = Path(shutil.copytree(tiny_folder, tmp_path / "biased")), 16
    for path in folder.glob("*/diffusion_pytorch_model.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.endswith((".conv1.bias", ".conv2.bias", "conv_in.bias", "samplers.0.conv.bias")):
                tensors[name] = tensors[name] + 30
        save_file(tensors, path)
    model = load_model(str(folder))
    reference = reference_from_calibration(model, None, tile_px)
    inputs = verification_inputs((), model.spec, tile_px)
    with open_engine(full_precision_engine(model, tmp_path, tile_px), precision="f32") as engine:
        result = verify(engine, reference, inputs)
    assert result.worst[1] >= 60, result.per_image_db


class Picture:
    """As much of an upscaler as `smooth_scores` asks for."""

    tile_px = 16

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def upscale(self, pixels: np.ndarray, color_fix: str) -> np.ndarray:
        assert color_fix == "none"
        # One picture alone comes out otherwise.
        return pixels + np.uint8(self.shift) if (pixels == 128).all() else pixels


def test_scores_name_the_worst_tile() -> None:
    worst = min(smooth_scores(Picture(3), Picture(0)), key=lambda score: score["psnr_db"])
    assert worst == {"name": "grey", "psnr_db": pytest.approx(20 * np.log10(255 / 3), abs=0.01), "max_levels": 3}
    assert {score["psnr_db"] for score in smooth_scores(Picture(0), Picture(0))} == {200.0}
