"""Reverse calibration: the order of modules, exact inputs, what it gains, and an interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folding import distance
from torch.utils.checkpoint import checkpoint

from intsr.calib.calibrate import Recipe, calibrate, crops_of_recipe, steps_of_recipe
from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.perceptual import perceptual_distance
from intsr.calib.learn.quantized_layer import QuantizedLayer, branch_rank, quantized_layers
from intsr.calib.learn.reverse import _ReverseWalk
from intsr.calib.learn.stages import Run
from intsr.calib.learn.train import TrainingOptions
from intsr.calib.models.families.sd21 import module_of_site, network_of_site
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.errors import UsageError
from intsr.types import NETWORKS, Bits

SMALL = Recipe(
    "qartsr",
    Bits(4, 4),
    parts=("vae",),
    tile_px=16,
    crop_px=8,
    crops=4,
    guard=False,
    training=TrainingOptions(2, 6, 2),
)


def test_from_the_output_to_the_input_and_then_everything(tiny_model: SRModel, pictures: list[Path]) -> None:
    seen: list[PhaseName] = []
    steps = [0]

    def report(phase: PhaseName, count: int, loss: float) -> None:
        steps[0] += count
        if phase not in seen:
            seen.append(phase)

    recipe = replace(SMALL, parts=("unet", "vae"), training=TrainingOptions(1, 1, 2))
    calibration = calibrate(tiny_model, pictures, recipe, report=report)
    networks = [phase.network for phase in seen]
    assert list(dict.fromkeys(networks)) == ["decoder", "unet", "encoder", "all"]
    of_unet = [phase.block for phase in seen if phase.network == "unet"]
    assert of_unet.index("unet.mid_block") < of_unet.index("unet.down_blocks.0")
    assert of_unet[0].startswith("unet.up_blocks") and of_unet.count("unet.mid_block") == 1
    assert steps[0] == steps_of_recipe(tiny_model, recipe)
    assert set(calibration.curves) == {str(phase) for phase in seen}


def test_inputs_of_the_module_that_is_trained_are_exact(tiny_model: SRModel, pictures: list[Path]) -> None:
    crops = crops_of_recipe(tiny_model, pictures, SMALL)
    run = Run(SMALL.stages, SMALL.training, 0, Journal(None, {}), lambda *_: None, crops)
    layers = quantized_layers(tiny_model, SMALL.bits, SMALL.parts, **SMALL.stages.layer_settings)
    walk = _ReverseWalk(reference_networks(tiny_model), layers, list(crops.all), run)
    losses = walk._module_loss
    checked: list[str] = []

    def watched(module):  # type: ignore[no-untyped-def]
        given, exact = [], []
        pairs = ((walk.quantized, given), (walk.references, exact))
        handles = [
            networks[module.network]
            .get_submodule(module.name)
            .register_forward_pre_hook(
                lambda _, args, kwargs, kept=kept: kept.append((args or tuple(kwargs.values()))[0].clone()),
                with_kwargs=True,
            )
            for networks, kept in pairs
        ]
        with torch.no_grad():
            x = walk.whole.inputs[module.network][0]
            walk.quantized[module.network](x), walk.references[module.network](x)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(given[0], exact[0], rtol=0, atol=0)
        checked.append(module.name)
        return losses(module)

    walk._module_loss = watched  # type: ignore[method-assign]
    walk.train()
    assert len(checked) > 4 and checked[0].startswith("vae.decoder")


@pytest.mark.usefixtures("one_thread")
def test_memory_options_hold_for_whole_networks(
    tiny_model: SRModel, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing activations twice changes no number; bfloat16 does."""
    recipe = replace(SMALL, parts=("vae",), training=TrainingOptions(1, 1, 2))
    plain = calibrate(tiny_model, pictures, recipe)
    again: list[object] = []
    monkeypatch.setattr("intsr.calib.learn.method.checkpoint", lambda *a, **k: again.append(a) or checkpoint(*a, **k))
    recomputed = calibrate(tiny_model, pictures, replace(recipe, training=replace(recipe.training, recompute=True)))
    assert again and recomputed.digest() == plain.digest()
    mixed = calibrate(tiny_model, pictures, replace(recipe, training=replace(recipe.training, mixed=True)))
    assert mixed.digest() != plain.digest()


def test_the_calibration_says_what_pictures_were_compared_by(
    tiny_model: SRModel, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def lpips(path: Path, device: str) -> object:
        asked.append(path)
        return lambda a, b: (a - b).abs().mean()

    monkeypatch.setattr("intsr.calib.learn.perceptual.Lpips", lpips)
    weights = tmp_path / "lpips.pth"
    weights.write_bytes(b"weights")
    recipe = replace(SMALL, parts=("vae",), training=TrainingOptions(0, 1, 2))
    for given, said in ((None, "structure and edges"), (weights, "lpips")):
        save_calibration(calibrate(tiny_model, pictures, replace(recipe, lpips=given)), tmp_path / "c")
        assert load_calibration(tmp_path / "c").perceptual == said
    assert asked == [weights]
    with pytest.raises(UsageError, match="--lpips: together with --method passionsr; expected --method qartsr"):
        Recipe("passionsr", lpips=weights)


@pytest.mark.slow
def test_training_comes_nearer_than_its_start(tiny_model: SRModel, pictures: list[Path]) -> None:
    start = calibrate(tiny_model, pictures, replace(SMALL, training=TrainingOptions(0, 0, 2)))
    trained = calibrate(tiny_model, pictures, replace(SMALL, training=TrainingOptions(4, 12, 2)))
    assert distance(tiny_model, trained) < 0.9 * distance(tiny_model, start)


def interrupt_after(steps: int) -> Callable[[PhaseName, int, float], None]:
    left = [steps]

    def report(phase: PhaseName, count: int, loss: float) -> None:
        left[0] -= count
        if left[0] <= 0:
            raise KeyboardInterrupt

    return report


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_run_ends_in_the_same_numbers(
    tiny_model: SRModel, pictures: list[Path], tmp_path: Path
) -> None:
    whole = calibrate(tiny_model, pictures, SMALL)
    for stop_at in (5, 17):
        work = tmp_path / f"work{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            calibrate(tiny_model, pictures, SMALL, report=interrupt_after(stop_at), work=work)
        assert calibrate(tiny_model, pictures, SMALL, work=work).digest() == whole.digest()


def test_branches_are_there_and_are_kept(tiny_model: SRModel, pictures: list[Path], tmp_path: Path) -> None:
    """At most an eighth of a layer's smaller side, none where 8 bits are; --rank 0 leaves them out."""
    recipe = replace(SMALL, method="svdquant")
    calibration = calibrate(tiny_model, pictures, recipe)
    branches = {site: q.branch_up for site, q in calibration.sites.items() if q.branch_up is not None}
    assert branches and all(up.shape[1] <= max(1, up.shape[0] // 8) for up in branches.values())
    assert not any(q.branch_up is not None for q in calibration.sites.values() if q.weight_bits == 8)
    save_calibration(calibration, tmp_path / "saved")
    assert load_calibration(tmp_path / "saved").digest() == calibration.digest()
    bare = calibrate(tiny_model, pictures, replace(recipe, rank=0))
    assert not any(q.branch_up is not None for q in bare.sites.values())
    with pytest.raises(UsageError, match="--rank"):
        replace(recipe, method="passionsr", rank=4)


def test_rotations_are_kept(tiny_model: SRModel, pictures: list[Path], tmp_path: Path) -> None:
    calibration = calibrate(tiny_model, pictures, replace(SMALL, method="quarot"))
    rotated = [q for q in calibration.sites.values() if q.rotation]
    assert rotated and any(q.row_rotation for q in calibration.sites.values())
    save_calibration(calibration, tmp_path / "saved")
    assert load_calibration(tmp_path / "saved").digest() == calibration.digest()


def test_a_branch_starts_as_the_best_of_its_rank(tiny_model: SRModel) -> None:
    layers = quantized_layers(tiny_model, Bits(4, 4), ("vae",), let="channel", rank=16)
    layer: QuantizedLayer = next(layer for layer in layers.values() if layer.branch and layer.layer.weight.ndim == 4)
    assert layer.branch is not None
    weight, scale = layer.layer.weight.detach(), torch.linspace(0.5, 2, layer.layer.weight.shape[1])
    layer.branch.decompose(weight, scale)
    scaled = (weight * scale.reshape(1, -1, 1, 1)).flatten(1)
    low_rank = (layer.branch.up @ (layer.branch.down * scale.reshape(1, -1, 1, 1)).flatten(1)).detach()
    left = torch.linalg.svdvals(scaled)[branch_rank(weight, 16) :].square().sum()
    torch.testing.assert_close((scaled - low_rank).square().sum(), left, rtol=1e-4, atol=1e-6)


def test_modules_are_parts_of_a_network() -> None:
    names = ("unet.up_blocks.1.resnets.0", "unet.mid_block.attentions.0", "unet.conv_in", "vae.encoder.down_blocks.2")
    expected = ["unet.up_blocks.1", "unet.mid_block", "unet.conv_in", "vae.encoder.down_blocks.2"]
    assert [module_of_site(name) for name in names] == expected
    assert [network_of_site(name) for name in names] == ["unet", "unet", "unet", NETWORKS[0]]


def test_the_perceptual_distance_sees_structure_and_edges() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    brighter = picture + 0.05
    assert float(perceptual_distance(picture, picture)) == pytest.approx(0, abs=1e-6)
    assert perceptual_distance(blurred, picture) > 10 * perceptual_distance(brighter, picture)
