from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import Calibration, SiteQuantizer
from intsr.errors import CalibrationError, UsageError
from intsr.types import Bits


@pytest.fixture
def calibration() -> Calibration:
    sites = {
        "unet.conv_in": SiteQuantizer(-1.0 / 3, 2.5, 8, 8),
        "unet.conv_out": SiteQuantizer(0.0, 0.0, 8, 6),
    }
    return Calibration("maxmin", Bits(6, 8), ("unet",), "tiny", "ab" * 32, 3, 128, 1.5, 1000, sites)


@pytest.fixture
def saved(calibration: Calibration, tmp_path: Path) -> Path:
    save_calibration(calibration, tmp_path / "c")
    return tmp_path / "c"


def test_round_trip_is_exact(calibration: Calibration, saved: Path, tmp_path: Path) -> None:
    loaded = load_calibration(saved)
    assert loaded == calibration
    assert loaded.digest() == calibration.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_digest_follows_ranges_and_not_the_clock(calibration: Calibration) -> None:
    assert replace(calibration, seconds=99.0).digest() == calibration.digest()
    sites = dict(calibration.sites) | {"unet.conv_in": SiteQuantizer(-0.3, 2.5, 8, 8)}
    assert replace(calibration, sites=sites).digest() != calibration.digest()


def test_writing_again_replaces(calibration: Calibration, saved: Path) -> None:
    save_calibration(replace(calibration, pictures=7), saved)
    assert load_calibration(saved).pictures == 7


def test_a_folder_with_something_else_is_kept(calibration: Calibration, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="already holds something else"):
        save_calibration(calibration, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_tensor_missing_or_broken(saved: Path) -> None:
    path = saved / "ranges.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"unet.conv_in.x_max": np.array(np.nan)}, path)
    with pytest.raises(CalibrationError, match=r"unet\.conv_in"):
        load_calibration(saved)
    del tensors["unet.conv_in.x_max"]
    save_file(tensors, path)
    with pytest.raises(CalibrationError, match=r"unet\.conv_in\.x_max"):
        load_calibration(saved)


def test_keys_missing_unknown_or_of_another_kind(saved: Path) -> None:
    """One line each, that names the key."""
    path = saved / "calibration.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "tile_px"}))
    with pytest.raises(CalibrationError, match="tile_px"):
        load_calibration(saved)
    others: dict[str, tuple[object, ...]] = {
        "parts": (None, [None], "unet", []),
        "bits": (8, "w99"),
        "method": ({},),
        "seconds": (None, True),
        "pictures": ("3", True, 2.5),
        "sites": (None, [1]),
        "schema_version": (4,),
        "colour": ("red",),
    }
    for key, value in ((key, value) for key, several in others.items() for value in several):
        path.write_text(json.dumps(values | {key: value}))
        with pytest.raises(CalibrationError, match=key.replace("_", ".")) as error:
            load_calibration(saved)
        assert "\n" not in str(error.value)
    for bits in (9, 1, "8", None):
        values["sites"]["unet.conv_in"]["weight_bits"] = bits
        path.write_text(json.dumps(values))
        with pytest.raises(CalibrationError, match="weight_bits"):
            load_calibration(saved)


def test_curves_of_another_kind(saved: Path) -> None:
    for text in ('{"unet": [[1, true, 2.5]]}', '{"unet": 3}', '{"unet": [1, 2]}', "[1]"):
        (saved / "curves.json").write_text(text)
        with pytest.raises(CalibrationError, match=r"curves\.json"):
            load_calibration(saved)
    with pytest.raises(CalibrationError, match=r"curves\.json"):
        load_calibration(saved)


def test_no_calibration_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="intsr calibrate MODEL"):
        load_calibration(tmp_path)


def test_another_models_calibration(calibration: Calibration) -> None:
    calibration.check_model("ab" * 32, "tiny")
    with pytest.raises(CalibrationError, match=r"\(other\); calibrate this model \(intsr calibrate\), or"):
        calibration.check_model("cd" * 32, "other")
