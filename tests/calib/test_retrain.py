"""A model at another timestep: where it starts, what it learns, that it goes on where it stopped, what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import edit_json

from intsr.calib.models.open import open_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.retrain import RetrainRecipe, _student, nearest_timestep, retrain, write_retrained
from intsr.errors import CalibrationError, ModelError, UsageError

SMALL = RetrainRecipe(200, rank=4, steps=8, crop_px=8, crops=6, batch=2)
pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_the_start_differs_by_what_z_is_divided_by_alone(tiny_folder: Path) -> None:
    model = open_model(str(tiny_folder)).load()
    z = torch.randn(2, model.vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    teacher, old = reference_networks(model)["unet"](z), model.spec.alpha_bar
    student, layers = _student(model, 200, 0.7536915, SMALL)
    torch.testing.assert_close(student(z) - teacher, z * (0.7536915**-0.5 - old**-0.5), rtol=1e-3, atol=1e-3)
    assert len(layers) > 20 and all(float(layer.change.up.abs().max()) == 0 for layer in layers)


def test_nearest_timestep_by_hand() -> None:
    """z_H^2 = 1 everywhere and an error of 0.5: an SNR of 4, which a / (1 - a) has at a = 0.8."""
    clean = torch.ones(3, 4, 2, 2)
    assert nearest_timestep([0.99, 0.9, 0.8, 0.7, 0.1], clean + 0.5, clean) == 2
    assert nearest_timestep([0.99, 0.9, 0.8, 0.7, 0.1], clean + 0.3, clean) == 1


def test_what_is_written_makes_the_teachers_latents(tiny_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    source = open_model(str(tiny_folder))
    result = retrain(source, pictures, SMALL, tile_px=16)
    assert result.end < 0.5 * result.start
    write_retrained(source, result, tmp_path / "moved")
    moved = open_model(str(tmp_path / "moved"))
    assert moved.spec.timestep == 200 and moved.spec.alpha_bar == pytest.approx(0.753692, abs=1e-6)
    assert moved.spec.name.endswith("-t200") and moved.digest != source.digest
    for name, tensor in moved.load("unet").unet.state_dict().items():
        torch.testing.assert_close(tensor, result.unet[name].half().float(), rtol=0, atol=0)
    with pytest.raises(UsageError, match="exists"):
        write_retrained(source, result, tmp_path / "moved")


def test_the_models_own_rule_stays_before_the_schedulers(
    tiny_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "own"))
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    edit_json(folder / "intsr_model.json", x0_rule="epsilon")
    source = open_model(str(folder))
    write_retrained(source, retrain(source, pictures, replace(SMALL, steps=1), tile_px=16), tmp_path / "moved")
    assert open_model(str(tmp_path / "moved")).spec.x0_rule == "epsilon"


def test_a_stopped_run_ends_in_the_same_numbers(tiny_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    source, done = open_model(str(tiny_folder)), [0]
    whole = retrain(source, pictures, SMALL, tile_px=16)

    def stop(_: object, steps: int, loss: float) -> None:
        done[0] += steps
        if done[0] == 5:
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("intsr.calib.learn.journal.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            retrain(source, pictures, SMALL, tile_px=16, report=stop, work=work)
    resumed = retrain(source, pictures, SMALL, tile_px=16, work=work)
    assert all(torch.equal(resumed.unet[name], tensor) for name, tensor in whole.unet.items())
    with pytest.raises(CalibrationError, match="timestep"):
        retrain(
            source, pictures, RetrainRecipe(100, rank=4, steps=8, crop_px=8, crops=6, batch=2), tile_px=16, work=work
        )


def test_the_command(intsr, tiny_folder: Path, pictures: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given = ("retrain", tiny_folder, "--images", pictures[0].parent, "--tile", 16, "--crop", 8, "--batch", 2)
    short = ("--crops", 4, "--steps", 1, "--rank", 2)
    code, out, err = intsr(*given, *short, "--timestep", "auto", "-o", tmp_path / "auto", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert open_model(str(tmp_path / "auto")).spec.timestep == facts["timestep"]
    assert not (tmp_path / "auto.work").exists()
    for timestep, said in (("soon", "--timestep: 'soon'"), (1000, "--timestep: 1000"), ("-1", "--timestep")):
        code, _, err = intsr(*given, *short, "--timestep", timestep, "-o", tmp_path / "none")
        assert code == 2 and said in err and not (tmp_path / "none").exists()


def test_weights_beyond_fp16_are_refused(tiny_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    source = open_model(str(tiny_folder))
    result = retrain(source, pictures, replace(SMALL, rank=1, steps=1), tile_px=16)
    result.unet["conv_in.weight"].mul_(1e7)
    with pytest.raises(ModelError, match="fp16"):
        write_retrained(source, result, tmp_path / "moved")
    assert not (tmp_path / "moved").exists()
