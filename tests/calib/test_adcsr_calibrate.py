"""AdcSR calibrated by every method, as tests on SD 2.1's kind are; and what has no sense for it, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from folding import distance, fold

from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.data.crops import crops_from_pictures
from intsr.calib.data.pictures import calibration_inputs
from intsr.calib.learn.method import PICTURE
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.low_bits import low_bits_warning
from intsr.calib.methods import methods
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.export.fold.fold import fake_quantized
from intsr.types import Bits

Command = Callable[..., tuple[int, str, str]]
TRAINING = TrainingOptions(1, 2, 2)
QUICK = ("maxmin+let", Bits(8, 8))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def adcsr_model(adcsr_folder: Path) -> SRModel:
    return load_model(str(adcsr_folder))


def energy(model: SRModel) -> float:
    value = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 1.2 - 0.6
    with torch.no_grad():
        for network in reference_networks(model).values():
            value = network(value)
    return float(value.var())


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        pytest.param(name, bits, marks=() if (name, bits) == QUICK else pytest.mark.slow, id=f"{name}-{bits}")
        for name in methods(PICTURE)
        for bits in (Bits(8, 8), Bits(6, 6))
    ],
)
def test_every_method(adcsr_model: SRModel, pictures: list[Path], method: str, bits: Bits) -> None:
    recipe = Recipe(method, bits, tile_px=16, crop_px=8, crops=4, training=TRAINING)
    calibration = calibrate(adcsr_model, pictures, recipe)
    integer = {site for network in fold(adcsr_model, calibration).values() for site in network.layers}
    # All but the two layers beside the pictures.
    assert set(calibration.sites) - integer == {"unet.conv_in", "vae.decoder.conv_out"}
    assert "unet.features.conv_out" in integer
    assert distance(adcsr_model, calibration) < 0.3 * energy(adcsr_model)


def test_let_and_phases_fold_exactly(adcsr_model: SRModel, pictures: list[Path]) -> None:
    """A fold that was not exact would be far from full precision."""
    phases = ("unet.up_blocks.0.upsamplers.0.conv", "vae.decoder.up_blocks.1.upsamplers.0.conv")
    recipe = Recipe("maxmin+let", Bits(8, 8), tile_px=16)
    with pytest.MonkeyPatch.context() as patch:
        # The small model's are too narrow to be worth it.
        patch.setattr("intsr.calib.calibrate.wide_upsamplers", lambda model: phases)
        calibration = calibrate(adcsr_model, pictures, recipe)
    assert calibration.phases == phases
    assert distance(adcsr_model, calibration) < 0.01 * energy(adcsr_model)
    folded = fold(adcsr_model, calibration)
    assert folded["unet"].layers[phases[0]].weight_codes.shape == (4 * 96, 96, 2, 2)


def test_what_calibration_looks_at(adcsr_model: SRModel, pictures: list[Path]) -> None:
    """The low resolution itself, not enlarged; crops begin at what the UNet halves to whole pixels."""
    spec = adcsr_model.spec
    (_, x), *_ = calibration_inputs(pictures, spec, 16)
    assert x.shape == (1, 3, 16, 16)
    levels = (x + 1) * np.float32(127.5)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    settings = {"tile_px": 16, "crop_px": 8, "count": 6, "batch": 2, "seed": 0}
    crops = crops_from_pictures(pictures, spec, **settings, guard=False)
    assert {crop.shape for crop in crops.all} == {(1, 3, 8, 8)}


def test_few_bits_are_compared_with_plain_enlargement(
    adcsr_model: SRModel, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is of the output's size, though networks are given the low resolution."""
    compared: list[tuple[torch.Size, torch.Size]] = []

    def psnr_db(got: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
        compared.extend((a.shape, b.shape) for a, b in zip(got, exact, strict=True))
        return float(len(compared))

    monkeypatch.setattr("intsr.calib.low_bits._psnr_db", psnr_db)
    calibration = calibrate(adcsr_model, pictures, Recipe("maxmin", Bits(2, 2), tile_px=16))
    warning = low_bits_warning(adcsr_model, calibration, pictures)
    assert warning is not None and "2.0 dB from full precision" in warning and "plain enlargement 4.0 dB" in warning
    assert set(compared) == {(torch.Size((1, 3, 32, 32)),) * 2}


def test_one_part_alone(adcsr_model: SRModel, pictures: list[Path]) -> None:
    calibration = calibrate(adcsr_model, pictures, Recipe("maxmin", Bits(8, 8), parts=("vae",), tile_px=16))
    folded = fold(adcsr_model, calibration)
    assert not folded["unet"].layers and folded["decoder"].layers
    features = torch.rand(1, 64, 8, 8)
    exact = reference_networks(adcsr_model)["decoder"](features)
    assert (fake_quantized(folded["decoder"])(features) - exact).abs().max() < 0.2


def test_commands_that_need_a_timestep_or_other_sizes(
    intsr: Command, adcsr_folder: Path, pictures: list[Path], passionsr_files: list[Path], tmp_path: Path
) -> None:
    images, output = pictures[0].parent, tmp_path / "output"
    refused = "a model without timestep and latents"
    for words, arguments in (
        (refused, ("retrain", adcsr_folder, "--images", images, "--timestep", "auto", "-o", output)),
        (refused, ("calibrate", adcsr_folder, "--passionsr", *passionsr_files, "-o", output)),
        ("multiple of 4", ("calibrate", adcsr_folder, "--images", images, "--tile", 18, "-o", output)),
        ("--lora: together with AdcSR", ("export", adcsr_folder, "--lora", passionsr_files[0], "-o", output)),
        ("--prompt: together with AdcSR", ("compile", adcsr_folder, "--bits", "fp", "--prompt", "", "-o", output)),
        ("--pisa-weights: without a LoRA", ("export", adcsr_folder, "--pisa-weights", "1,1", "-o", output)),
        ("expected a positive multiple of 16", ("info", adcsr_folder, "--size", 72)),
        ("neither or both", ("synth", "--arch", "sd21", "--family", "adcsr", "-o", output)),
        ("neither or several", ("info", "--arch", "sd21", "--family", "adcsr")),
    ):
        code, out, err = intsr(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("intsr: error: ")]
        assert code and not out and len(lines) == 1 and words in lines[0], err
        assert not output.exists()
