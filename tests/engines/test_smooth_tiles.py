"""Flat and smooth tiles through compiled engines: what photographs hide."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from builds import built_in_this_process
from safetensors.torch import load_file, save_file

from intsr.calib.data.made_pictures import flat, noisy, page, smooth_tiles
from intsr.calib.data.pictures import tiles_from_pixels
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
Tiles = Callable[[int], dict[str, np.ndarray]]


def further_tiles(side_px: int) -> dict[str, np.ndarray]:
    """What `smooth_tiles` leaves out: more colours, the other middle grey, a flat sky with noise, another text."""
    colours = {"grey 127": (127,) * 3, "green": (0, 255, 0), "yellow": (255, 255, 0), "magenta": (255, 0, 255)}
    return {name: flat(side_px, colour) for name, colour in colours.items()} | {
        "flat sky": noisy(flat(side_px, (120, 170, 235)), 1.0, np.random.default_rng(4)),
        "one word": page(side_px, "Hamburgefonstiv", (0, 0, 0), (255, 255, 255), lines=1),
    }


def inputs_of(model: SRModel, tiles: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(name, tiles_from_pixels(pixels, model.spec, len(pixels))) for name, pixels in tiles.items()]


def full_precision_engine(model: SRModel, folder: Path, tile_px: int) -> Path:
    export_model(model, None, lowering_from_name("cpu"), tile_px, folder / "onnx")
    with built_in_this_process():
        compile_engine(folder / "onnx", folder / "fp.engine", BuildOptions("cpu", detailed=False))
    return folder / "fp.engine"


@pytest.fixture(scope="module")
def demo_engine(demo_model: SRModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_precision_engine(demo_model, tmp_path_factory.mktemp("demo-fp"), TILE_PX)


@pytest.mark.parametrize("tiles", [smooth_tiles, further_tiles])
@pytest.mark.parametrize(("precision", "least_db"), [("f32", 80), ("bf16", 40)])
def test_the_demonstration_model(
    demo_engine: Path, demo_model: SRModel, tiles: Tiles, precision: str, least_db: int
) -> None:
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no BF16")
    with open_engine(demo_engine, precision=precision) as engine:
        inputs = inputs_of(demo_model, tiles(TILE_PX))
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
    inputs = inputs_of(model, smooth_tiles(tile_px) | further_tiles(tile_px))
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
