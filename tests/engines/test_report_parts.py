"""What a report is made of: layers measured one by one, graph order, blocks, maps, sizes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.calib.models.open import SRModel
from intsr.engines.inspect.calibration import RUNS
from intsr.engines.report.measure.layer_names import REASONS, graph_order, short_name
from intsr.engines.report.measure.layers import BEYOND, BINS, MAX_SQNR_DB, LayerObserver, observe_layers
from intsr.engines.report.measure.picture_scores import Block, error_levels, mean_scores, worst_blocks
from intsr.engines.report.measure.variants import Picture, Variant
from intsr.engines.report.page import embed as picture_files
from intsr.engines.report.page.render import decibels, share, spark
from intsr.engines.report.sections.head import head_of
from intsr.errors import CalibrationError
from intsr.export.fold.fold import FoldedLayer, folded_layer
from intsr.kernels.quantizer import quantize_weight, quantize_weight_in_range

RNG = np.random.default_rng(5)


def _layer(kind: str) -> tuple[nn.Conv2d | nn.Linear, torch.Tensor]:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(16, 24), torch.randn(2, 9, 16)
    return nn.Conv2d(16, 24, 3, stride=2, padding=1), torch.randn(2, 16, 8, 8)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("let", ["none", "scale", "shift"])
@pytest.mark.parametrize("bits", [8, 4])
def test_sqnr_is_that_of_the_folded_layer(kind: str, let: str, bits: int) -> None:
    """Against `folded_layer`, which engines agree with: W~ = s W, bias b + W d."""
    layer, x = _layer(kind)
    weight = layer.weight.detach().numpy()
    s = np.ones(16, np.float32) if let == "none" else RNG.uniform(0.5, 2, 16).astype(np.float32)
    d = RNG.normal(size=16).astype(np.float32) * (let == "shift")
    arrays = {} if let == "none" else {"let_scale": s, "let_shift": d}
    channels = (1, 16) + (1,) * (weight.ndim - 2)
    transformed = weight * s.reshape(channels)
    low, high = transformed.reshape(24, -1).min(1), transformed.reshape(24, -1).max(1)
    if let == "none":
        codes, scale = quantize_weight(transformed, bits)
        quantizer = SiteQuantizer(-6.0, 6.5, bits, bits)
    else:
        codes, scale = quantize_weight_in_range(transformed, low, high, bits)
        ranges = {"weight_low": low.astype(np.float32), "weight_high": high.astype(np.float32)}
        quantizer = SiteQuantizer(-6.0, 6.5, bits, bits, **arrays, **ranges)
    observer = LayerObserver("site", quantizer, layer, [])
    observer(layer, (x,))
    statistics = observer.statistics()

    shift = d if let == "shift" else None
    folded = FoldedLayer("site", codes, scale, quantizer.activation_params(), arrays.get("let_scale"), shift)
    moved, _ = _layer(kind)
    with torch.no_grad():
        moved.bias += torch.from_numpy((weight * d.reshape(channels)).reshape(24, -1).sum(1))
        y, got = layer(x), folded_layer(moved, folded)(x)
    expected = 10 * torch.log10(y.square().sum() / (y - got).square().sum())
    assert statistics["output_sqnr_db"] == pytest.approx(float(expected), abs=0.02)
    assert 5 < statistics["output_sqnr_db"] < MAX_SQNR_DB


def test_what_is_counted_of_an_input() -> None:
    layer = nn.Linear(16, 16)
    x = torch.full((1, 100, 16), 0.5)
    x[0, 0, 3], x[0, 1, 4], x[0, 2, 4] = 5.0, -1.0, -1.0
    observer = LayerObserver("site", SiteQuantizer(0.0, 1.0, 8, 8), layer, [])
    for _ in range(2):
        observer(layer, (x,))
    statistics = observer.statistics()
    assert (statistics["clipped_low"], statistics["clipped_high"]) == (2 / 1600, 1 / 1600)
    assert (statistics["seen_min"], statistics["seen_max"]) == (-1.0, 5.0)
    counts = np.array(statistics["histogram"])
    middle = int((0.5 + BEYOND) / (1 + 2 * BEYOND) * BINS)
    assert (counts.sum(), counts[0], counts[-1], counts[middle]) == (3200, 4, 2, 3194)
    assert statistics["outlier_ratio"] == 10.0
    assert statistics["outlier_channels"][:2] == [3, 4]


def test_layers_come_in_the_order_they_run(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    Image.fromarray(RNG.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    statistics = observe_layers(tiny_model, tiny_calibration, [tmp_path / "a.png"])
    run = sorted(statistics, key=lambda site: statistics[site]["order"])
    assert graph_order(site for site in tiny_calibration.sites if site in statistics) == run
    assert len(run) > 30 and all(value["input_sqnr_db"] > 20 for value in statistics.values())
    assert not any(module._forward_pre_hooks for module in tiny_model.unet.modules())


def test_layers_of_another_model_are_refused(
    demo_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="calibrate this model"):
        observe_layers(demo_model, tiny_calibration, [tmp_path / "a.png"])


def test_short_names() -> None:
    assert short_name("unet.up_blocks.2.resnets.1.conv_shortcut") == "up 2 res 1 conv_shortcut"
    assert short_name("vae.encoder.mid_block.attentions.0.to_q") == "mid attn 0 to_q"


def test_reasons_know_what_calibration_knows() -> None:
    assert set(RUNS) - {"integer"} <= set(REASONS)


def test_the_worst_blocks_are_found_and_do_not_overlap() -> None:
    first = np.full((300, 400, 3), 100, np.uint8)
    second = first.copy()
    second[50:70, 200:230] += 40
    second[200:210, 10:20] += 20
    picture = Picture(Path("a"), 1, 400, 300)
    blocks = worst_blocks(picture, error_levels(first, second))
    assert len(blocks) == 2
    large, small = blocks
    assert large.left <= 200 and large.left + 64 >= 230 and large.top <= 50 and large.top + 64 >= 70
    assert small.left <= 10 and small.top <= 200 and small.top + 64 >= 210
    assert large.rms_levels == pytest.approx(40 * np.sqrt(20 * 30 / 64**2), rel=1e-6)
    assert worst_blocks(picture, error_levels(first, first)) == []


def test_small_pictures_are_one_block() -> None:
    error = np.ones((20, 30))
    (block,) = worst_blocks(Picture(Path("a"), 1, 30, 20), error)
    assert (block.side_px, block.top, block.rms_levels) == (20, 0, 1.0)


def test_large_pictures_are_cut_around_what_differs() -> None:
    part = picture_files.part_to_show(5000, 4000, Block("a", 4900, 100, 64, 1.0))
    assert (part.left, part.top, part.width, part.height) == (3976, 0, 1024, 768)
    whole = picture_files.part_to_show(600, 400, None)
    assert (whole.left, whole.top, whole.width, whole.height) == (0, 0, 600, 400)


def _noise(count: int) -> list[list[NDArray[np.uint8]]]:
    return [[RNG.integers(0, 255, (64, 64, 3), np.uint8)] for _ in range(count)]


def test_pictures_stay_within_their_bytes() -> None:
    parts = _noise(4)
    urls, quality = picture_files.encoded_within(parts, 10**6)
    assert (len(urls), quality) == (4, 92)
    size = sum(len(url) for row in urls for url in row)
    fewer, quality = picture_files.encoded_within(parts, size - 1)
    assert (len(fewer), quality) == (4, 85)
    least, quality = picture_files.encoded_within(parts, 1)
    assert (len(least), quality) == (1, 60)


def test_a_single_wrong_pixel_shows_in_a_reduced_map() -> None:
    error = np.zeros((2100, 1500))
    error[1999, 3] = 10
    colours = np.arange(192, dtype=np.uint8).reshape(64, 3)
    url = picture_files.error_map_url(error, 10.0, colours)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (300, 420)
        codes = np.asarray(image)
    assert np.argwhere(codes).tolist() == [[399, 0]] and codes[399, 0] == 63


def test_numbers_as_people_read_them() -> None:
    assert [decibels(value) for value in (None, 31.234, 200.0)] == ["–", "31.23 dB", "identical"]
    assert [share(value) for value in (0.0, 1e-6, 0.0123)] == ["0.00 %", "< 0.01 %", "1.23 %"]
    path = spark([0, 10, 0, 1])
    assert path.startswith("M0 26V26.0H30.00V0.0H60.00") and path.endswith("H120.00V26Z")


def test_grids_end_where_the_histograms_lines_are() -> None:
    """The page draws the lines at 20 and 100 of 120: where the range ends."""
    assert (BEYOND / (1 + 2 * BEYOND) * 120, (1 + BEYOND) / (1 + 2 * BEYOND) * 120) == (20, 100)


def _score(picture: str, variant: str, psnr: float, seam: float, calibrated_on: bool = False) -> dict[str, object]:
    keys = ("psnr_to_reference_db", "psnr_y_db", "ssim_y", "ms")
    values: dict[str, object] = dict.fromkeys(keys, psnr) | {"max_error_levels": 1, "seam_score": seam}
    return {"picture": picture, "variant": variant, "calibrated_on": calibrated_on} | values


def _facts(scores: list[dict[str, object]]) -> dict[str, object]:
    variants = [Variant(name, name, "engine") for name in ("lr", "fp", "int8")]
    return {"primary": "int8", "reference": "fp", "scores": scores, "means": mean_scores(scores, variants)}


def test_pictures_that_were_calibrated_on_are_left_out_of_means() -> None:
    names = ("lr", "fp", "int8")
    scores = [_score("a", name, 20, 1.0) for name in names] + [_score("b", name, 30, 1.0, True) for name in names]
    means = mean_scores(scores, [Variant("int8", "int8", "engine")])
    assert [(mean["psnr_y_db"], mean["pictures"], mean["left_out"]) for mean in means] == [(20, 1, 1)]
    numbers = {number["key"]: number for number in head_of(_facts(scores), None, None, [])["key_numbers"]}
    assert numbers["psnr_y_db"]["value"] == 20
    assert "one picture (1 calibrated on left out)" in numbers["psnr_y_db"]["note"]
    # Where there are no others, they are what there is.
    (mean,) = mean_scores([score for score in scores if score["picture"] == "b"], [Variant("fp", "fp", "engine")])
    assert (mean["psnr_y_db"], mean["pictures"], mean["left_out"]) == (30, 1, 0)


def test_the_number_of_seams_is_a_mean_and_names_the_worst() -> None:
    scores = [_score("a", "lr", 0, 1.0), _score("a", "fp", 0, 1.0), _score("a", "int8", 0, 1.01)]
    scores += [_score("b", "lr", 0, 1.4), _score("b", "fp", 0, 1.54), _score("b", "int8", 0, 1.61)]
    (number,) = [n for n in head_of(_facts(scores), None, None, [])["key_numbers"] if n["key"] == "seam_score"]
    assert number["value"] == pytest.approx((1.01 + 1.15) / 2) and number["text"] == "1.08"
    assert "mean of 2 pictures" in number["note"]
    assert number["note"].endswith("most in b: 1.15, 1.10 in full precision")
