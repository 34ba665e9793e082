"""Learned calibration on a tiny model: it helps, it is what the fold computes, and a kill changes nothing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folding import distance

from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import PICTURE
from intsr.calib.learn.train import CACHES, Phase, TrainingOptions, train
from intsr.calib.methods import methods
from intsr.errors import CalibrationError, UsageError
from intsr.types import Bits

SMALL = Recipe(
    "passionsr", Bits(6, 6), tile_px=16, crop_px=8, crops=4, guard=False, training=TrainingOptions(2, 4, 2)
)
OPTIONS = (
    "--parts",
    "vae",
    "--tile",
    16,
    "--crop",
    8,
    "--crops",
    6,
    "--batch",
    2,
    "--block-steps",
    4,
    "--joint-steps",
    6,
)

# Kills the process by the signal that nothing can catch, at the n-th time that the journal writes.
KILLED_AT = """
import os, signal, sys
import intsr.calib.learn.journal as journal
journal.CHECKPOINT_SECONDS = 0.0
left = [int(sys.argv[1])]
write = journal.Journal._write
def counted(self, path, state):
    write(self, path, state)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal._write = counted
from intsr.calib.commands.calibrate import calibrate
calibrate(sys.argv[2:])
"""


pytestmark = pytest.mark.usefixtures("one_thread")
FAST_METHODS = ("passionsr", "efficientdm")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in FAST_METHODS else pytest.mark.slow)
        for name, method in methods(PICTURE).items()
        if method.trains
    ],
)
def test_every_method_trains_and_folds(tiny_model, pictures, method):
    parts = ("unet", "vae") if method == "passionsr" else ("vae",)
    options = TrainingOptions(1, 2, 2)
    calibration = calibrate(tiny_model, pictures, replace(SMALL, method=method, parts=parts, training=options))
    assert calibration.method == method
    # Two methods search, and train nothing.
    assert (len(calibration.curves) >= 2) is bool(methods()[method].block or methods()[method].joint)
    for name, curve in calibration.curves.items():
        assert all(np.isfinite(value) for row in curve for value in row), name
        # The best parameters by the held-out pictures are kept: never worse than where the phase began.
        assert min(row[2] for row in curve) <= curve[0][2]
    assert np.isfinite(distance(tiny_model, calibration))
    if method == "passionsr":
        # d is there where it folds for free or is needed.
        sites = calibration.sites.items()
        shifted = {site for site, q in sites if q.let_shift is not None and q.let_shift.any()}
        assert any(site.endswith("proj_in") for site in shifted) and any(site.endswith("to_q") for site in shifted)
        assert not any(site.endswith(("to_out.0", "ff.net.2", "conv1", "conv2")) for site in shifted)


@pytest.mark.slow
def test_learned_ranges_beat_maxmin_at_four_bits(tiny_model, pictures):
    few = replace(SMALL, bits=Bits(4, 4), parts=("vae",))
    plain = calibrate(tiny_model, pictures, replace(few, method="maxmin"))
    learned = calibrate(tiny_model, pictures, few)
    before, after = (distance(tiny_model, c) for c in (plain, learned))
    assert after < 0.8 * before


@pytest.mark.slow
def test_caches_do_not_change_the_result(tiny_model, pictures):
    few = replace(SMALL, method="lbq", parts=("unet",), training=TrainingOptions(2, 0, 2))
    kept, disk, none = (
        calibrate(tiny_model, pictures, replace(few, training=TrainingOptions(2, 0, 2, cache=cache)))
        for cache in CACHES
    )
    # The same numbers, written and read.
    assert disk.digest() == kept.digest()
    # Computed again in batches of another size, equal but for rounding, which training enlarges from unit to unit.
    first = next(iter(kept.curves))
    assert none.curves.keys() == kept.curves.keys()
    np.testing.assert_allclose(none.curves[first], kept.curves[first], rtol=1e-3)
    for site, quantizer in kept.sites.items():
        ends = (none.sites[site].x_min, none.sites[site].x_max)
        reach = 0.05 * (quantizer.x_max - quantizer.x_min)
        assert ends == pytest.approx((quantizer.x_min, quantizer.x_max), abs=reach), site


@pytest.mark.slow
def test_recomputed_activations_do_not_change_the_result(tiny_model, pictures):
    few = replace(SMALL, method="lbq", parts=("vae",), training=TrainingOptions(0, 3, 2))
    kept = calibrate(tiny_model, pictures, few)
    other = calibrate(tiny_model, pictures, replace(few, training=TrainingOptions(0, 3, 2, recompute=True)))
    for site, quantizer in kept.sites.items():
        assert other.sites[site].x_max == pytest.approx(quantizer.x_max, rel=1e-4, abs=1e-5), site


@pytest.mark.slow
def test_symmetric_grids_are_symmetric(tiny_model, pictures):
    few = replace(SMALL, parts=("vae",), symmetric=True, training=TrainingOptions(1, 1, 2))
    calibration = calibrate(tiny_model, pictures, few)
    for method in ("maxmin", "maxmin+let"):
        static = calibrate(tiny_model, pictures, replace(few, method=method))
        for each in (calibration, static):
            learned = [q for q in each.sites.values() if q.let_scale is not None or each is static]
            assert all(
                q.activation_params().zero_point == 2 ** (q.activation_bits - 1) for q in learned if q.x_max > 0
            )


def killed_run(writes: int, arguments: list[object]) -> int:
    command = [sys.executable, "-c", KILLED_AT, str(writes), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment).returncode


@pytest.fixture(scope="module")
def whole(tiny_folder, pictures, tmp_path_factory) -> Path:
    """The calibration of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "whole"
    arguments = [tiny_folder, "--images", pictures[0].parent, "--bits", "w6a6", *OPTIONS, "-o", folder]
    assert killed_run(10**9, arguments) == 0
    return folder


@pytest.mark.parametrize(
    "writes", [pytest.param(2, marks=pytest.mark.slow), 40, pytest.param(90, marks=pytest.mark.slow)]
)
def test_killed_and_started_again_it_ends_the_same(tiny_folder, pictures, tmp_path, intsr, whole, writes):
    arguments = [tiny_folder, "--images", pictures[0].parent, "--bits", "w6a6", *OPTIONS]
    assert killed_run(writes, [*arguments, "-o", tmp_path / "broken"]) == -signal.SIGKILL
    assert (tmp_path / "broken.work").is_dir() and not (tmp_path / "broken").exists()
    assert intsr("calibrate", *arguments, "-o", tmp_path / "broken")[0] == 0
    assert not (tmp_path / "broken.work").exists()
    names = ("ranges.safetensors", "curves.json")
    for name in names:
        assert (tmp_path / "broken" / name).read_bytes() == (whole / name).read_bytes()
    assert load_calibration(tmp_path / "broken").digest() == load_calibration(whole).digest()


@pytest.mark.slow
def test_other_settings_do_not_resume(tiny_folder, pictures, tmp_path, intsr):
    arguments = [tiny_folder, "--images", pictures[0].parent, *OPTIONS, "-o", tmp_path / "c"]
    assert killed_run(2, [*arguments, "--bits", "w6a6"]) == -signal.SIGKILL
    code, _, err = intsr("calibrate", *arguments, "--bits", "w4a6")
    assert code == 2 and "--restart" in err and "w4a6" in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1 and "Traceback" not in err
    assert intsr("calibrate", *arguments, "--bits", "w4a6", "--restart")[0] == 0


@pytest.mark.parametrize(
    ("method", "joint_steps"), [pytest.param("qdiffusion", 0, marks=pytest.mark.slow), ("passionsr", 4)]
)
def test_blocks_without_a_step_are_gone_on_from(tiny_model, pictures, tmp_path, method, joint_steps):
    few = replace(SMALL, method=method, parts=("vae",), training=TrainingOptions(0, joint_steps, 2))
    whole, again = (calibrate(tiny_model, pictures, few, work=tmp_path / "w") for _ in range(2))
    assert again.digest() == whole.digest()


def test_a_broken_work_folder_is_one_line(tmp_path):
    Journal(tmp_path / "w", {"a": 1})
    (tmp_path / "w" / "run.json").write_text("{")
    with pytest.raises(CalibrationError, match="remove"):
        Journal(tmp_path / "w", {"a": 1})
    (tmp_path / "w" / "run.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "w" / "current.pt").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="cannot be read"):
        Journal(tmp_path / "w", {"a": 1}).in_progress("x")


def test_too_few_and_unfitting_pictures(tiny_model, pictures):
    with pytest.raises(UsageError, match="at least 2 pictures"):
        calibrate(tiny_model, pictures[:1], SMALL)
    with pytest.raises(UsageError, match="as many as a batch"):
        calibrate(tiny_model, pictures, replace(SMALL, training=TrainingOptions(1, 1, 9)))
    with pytest.raises(UsageError, match="--crop"):
        calibrate(tiny_model, pictures, replace(SMALL, crop_px=20))
    with pytest.raises(UsageError, match="--method"):
        Recipe(method="magic")


def test_a_loss_that_is_not_finite_ends_training():
    value = torch.nn.Parameter(torch.zeros(()))
    phase = Phase(
        PhaseName("decoder", "", "ranges"), (), (((value,), 1.0),), 3, lambda *_: value * float("nan"), lambda: 1.0
    )
    with pytest.raises(CalibrationError, match=r"decoder: ranges.*finite"):
        train(phase, Journal(None, {}), 0, crops=range(4), batch=2, report=lambda *_: None)


def test_dry_run_measures_and_writes_nothing(tiny_folder, pictures, tmp_path, intsr):
    arguments = [tiny_folder, "--images", pictures[0].parent, *OPTIONS, "-o", tmp_path / "c", "--dry-run", "--json"]
    code, out, err = intsr("calibrate", *arguments)
    assert code == 0
    values = json.loads(out)
    assert values["seconds"] > 0 and values["peak_bytes"] > 1e8 and values["blocks"] > 10
    assert values["measured"][0]["step_s"] > 0
    kinds = {unit["name"].rpartition(".")[0].rpartition(".")[2] for unit in values["measured"]}
    assert "resnets" in kinds
    assert "how:" in err and not list(tmp_path.iterdir())
    code, _, err = intsr("calibrate", *arguments, "--method", "maxmin")
    assert code == 2 and "one pass" in err


def test_methods_are_listed_once():
    assert list(methods(PICTURE))[:2] == ["maxmin", "maxmin+let"] and len(methods(PICTURE)) == 11
