"""`intsr compare` on a tiny random model: an interrupted run, then the same command again, and what it says."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import numpy as np
import pytest
from builds import built_in_this_process
from click.testing import CliRunner, Result
from PIL import Image

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.files import JSON_NAME
from intsr.engines.commands import compare as commands
from intsr.engines.compare import child
from intsr.engines.compare import run as library
from intsr.engines.compare.child import CalibrationTask
from intsr.engines.compare.types import Comparison, Row, label, recipes_from_options
from intsr.errors import CalibrationError, ImageError, UsageError
from intsr.runtime.measure.metrics import Scores, psnr_db, score_pair
from intsr.runtime.pictures.reader import read_pixels

METHODS = ("maxmin", "maxmin+let")
in_child = library.calibrate_in_child


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lr/, hr/ (two pictures of two sizes) and calibration/."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for name, size in (("a", (20, 16)), ("b", (16, 24))):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        large = small.resize((size[0] * 4, size[1] * 4), Image.Resampling.LANCZOS)
        for kind, picture in (("lr", small), ("hr", large)):
            (folder / kind).mkdir(exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    (folder / "calibration").mkdir()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "calibration" / "c.png")
    return folder


def arguments(model: Path, pictures: Path, *more: object) -> list[str]:
    given: list[object] = [model, "--calibration", pictures / "calibration", "--images", pictures / "lr"]
    return [str(item) for item in (*given, "--hr", pictures / "hr", "--tile", 16, *more)]


def run(*given: str) -> Result:
    return CliRunner().invoke(commands.compare, given, catch_exceptions=False)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same command twice, the first time interrupted while the second method calibrated."""
    folder = tmp_path_factory.mktemp("compared")
    given = arguments(tiny_folder, pictures, "--methods", ",".join(METHODS), "-o", folder, "--keep-pictures")
    calibrated: list[str] = []

    def watched(task: CalibrationTask) -> None:
        calibrated.append(task.recipe.method)
        if calibrated == list(METHODS):
            raise KeyboardInterrupt
        # One child is enough to see that children work: another one spends its time on importing torch.
        in_child(task) if len(calibrated) == 1 else task.run()

    with built_in_this_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "calibrate_in_child", watched)
        first = run(*given)
        assert not (folder / "compare.json").exists()
        second = run(*given, "--json")
    return SimpleNamespace(folder=folder, first=first, second=second, calibrated=calibrated)


def rows_of(runs: SimpleNamespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(runs.second.stdout)["rows"]
    return rows


def test_rows(runs: SimpleNamespace) -> None:
    rows = rows_of(runs)
    assert runs.second.exit_code == 0 and runs.second.stdout.count("\n") == 1
    assert all(row["error"] is None for row in rows)
    expected = [("bicubic", "fp", []), ("fp", "fp", [])]
    expected += [(method, "w8a8", ["unet", "vae"]) for method in METHODS]
    assert [(row["method"], row["bits"], row["parts"]) for row in rows] == expected
    answer = json.loads(runs.second.stdout)
    assert (answer["images"], answer["color_fix"], answer["precision"]) == (2, "none", "f32")
    assert answer == json.loads((runs.folder / "compare.json").read_text())
    assert (runs.folder / "compare.md").read_text() == f"{commands.table_from_rows(rows)}\n"


def test_an_interrupted_comparison_goes_on(runs: SimpleNamespace) -> None:
    assert runs.first.exit_code != 0 and runs.first.stdout == ""
    # Once each, and the one that was interrupted again.
    assert runs.calibrated == ["maxmin", "maxmin+let", "maxmin+let"]
    assert "maxmin w8a8 unet,vae: calibrated before" in runs.second.stderr
    assert "maxmin+let w8a8 unet,vae: calibrating\n" in runs.second.stderr


def test_costs_are_the_calibrations_own(runs: SimpleNamespace) -> None:
    for row in rows_of(runs)[2:]:
        (folder,) = (runs.folder / "calibrations").glob(f"{row['method']}-w8a8-unet-vae-????????")
        stored = json.loads((folder / JSON_NAME).read_text())
        assert (row["calibration_s"], row["peak_bytes"]) == (stored["seconds"], stored["peak_bytes"])
        assert row["peak_bytes"] > 50e6 and row["calibration_s"] > 0
        line = f"{row['method']} w8a8 unet,vae: {row['calibration_s']:.1f} s, {row['psnr_to_fp_db']:.2f} dB to full"
        assert line in runs.second.stderr


def test_numbers_are_those_of_the_pictures(runs: SimpleNamespace, pictures: Path) -> None:
    rows, kept = rows_of(runs), runs.folder / "pictures"
    folders = [next(kept.glob(f"{name}*")) for name in ("bicubic", "fp", "maxmin-", "maxmin+let-")]
    exact = [read_pixels(kept / "fp" / f"{name}.png") for name in "ab"]
    for row, folder in zip(rows, folders, strict=True):
        scores = [score_pair(folder / f"{name}.png", pictures / "hr" / f"{name}.png") for name in "ab"]
        assert row["psnr_y_db"] == pytest.approx(np.mean([score.psnr_y_db for score in scores]))
        assert row["ssim_y"] == pytest.approx(np.mean([score.ssim_y for score in scores]))
        assert row["psnr_y_loss_db"] == pytest.approx(rows[1]["psnr_y_db"] - row["psnr_y_db"])
        to_fp = [psnr_db(read_pixels(folder / f"{name}.png"), exact[i]) for i, name in enumerate("ab")]
        assert row["psnr_to_fp_db"] == (None if row["method"] == "fp" else pytest.approx(np.mean(to_fp)))
        assert (row["distance_to_fp"] == 0) is (row["method"] == "fp")
        assert (row["engine_bytes"] is None) is (row["method"] == "bicubic")
    drawn = ElementTree.parse(runs.folder / "compare.svg").getroot()
    assert [text for text in drawn.itertext() if text.strip() in METHODS] == list(METHODS)
    # Integers are smaller; and nearer to full precision than bicubic is.
    assert max(row["engine_bytes"] for row in rows[2:]) < rows[1]["engine_bytes"]
    assert max(row["distance_to_fp"] for row in rows[2:]) < rows[0]["distance_to_fp"]
    # Quantized, so not equal, and far nearer than anything else would be.
    assert all(30 < row["psnr_to_fp_db"] < 60 for row in rows[2:])


MISTAKES = (
    (["--methods", "maxmin,magic"], "--methods: 'magic'; expected some of maxmin, "),
    (["--methods", "maxmin,maxmin"], "--methods: 'maxmin,maxmin'; expected each once"),
    (["--methods", "maxmin", "--bits", "w8a8,w9a9"], "--bits: 'w9a9'"),
    (["--methods", "maxmin", "--bits", "fp"], "--bits: fp"),
    (["--methods", "maxmin", "--parts", "unet,vae", "--parts", "vae,unet"], "--parts: the same twice"),
    (["--methods", "maxmin", "--keep-pictures"], "--keep-pictures: no -o"),
)


def test_mistakes_are_found_before_any_work(
    tiny_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "calibrate_in_child", lambda task: pytest.fail("calibrated"))
    for more, message in MISTAKES:
        with pytest.raises(UsageError) as raised:
            run(*arguments(tiny_folder, pictures, *more))
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_pictures_that_do_not_fit(
    tiny_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "calibrate_in_child", lambda task: pytest.fail("calibrated"))
    given = arguments(tiny_folder, pictures, "--methods", "maxmin", "--hr", tmp_path)
    Image.open(pictures / "hr" / "a.png").save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no picture named b"):
        run(*given)
    Image.new("RGB", (64, 95)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="64x95 pixels; expected 64x96, 4 times"):
        run(*given)


@pytest.fixture
def job(tiny_folder: Path, pictures: Path) -> Comparison:
    pairs = tuple((pictures / "lr" / f"{name}.png", pictures / "hr" / f"{name}.png") for name in "ab")
    recipes = recipes_from_options("maxmin,lbq", "w8a8,w6a6", ["unet"], 16, True, seed=7, block_steps=3, crop_px=8)
    return Comparison(
        model=str(tiny_folder), recipes=recipes, calibration_images=pictures / "calibration", limit=1, pairs=pairs
    )


def test_options_of_training_go_to_methods_that_train_alone(job: Comparison) -> None:
    assert [label(recipe) for recipe in job.recipes] == [
        f"{method} {bits} unet" for bits in ("w8a8", "w6a6") for method in ("maxmin", "lbq")
    ]
    assert all((recipe.tile_px, recipe.symmetric) == (16, True) for recipe in job.recipes)
    assert [(r.seed, r.crop_px, r.training.block_steps) for r in job.recipes[:2]] == [(0, 32, 12), (7, 8, 3)]


def test_eight_bits_stand_beside_fewer() -> None:
    def rows(bits: str) -> list[str]:
        return [label(recipe) for recipe in recipes_from_options("maxmin", bits, ["unet", "vae"], 16, False)]

    assert rows("w4a4") == [
        *("maxmin+let w8a8 unet", "maxmin+let w8a8 vae"),
        *("maxmin w4a4 unet", "maxmin w4a4 vae"),
    ]
    assert rows("w8a8,w4a4") == [f"maxmin {bits} {part}" for part in ("unet", "vae") for bits in ("w8a8", "w4a4")]


def test_a_calibration_is_used_again_only_for_the_same_result(job: Comparison) -> None:
    maxmin, lbq = job.recipes[:2]

    def name(recipe: Recipe = lbq, digest: str = "m", hashes: Sequence[str] = ("p",)) -> str:
        return library._calibration_name(recipe, digest, hashes)

    assert name(replace(lbq, training=replace(lbq.training, cache="disk", recompute=True))) == name()
    recipes = [lbq, maxmin, job.recipes[3], *(replace(lbq, **more) for more in ({"seed": 1}, {"tile_px": 8}))]
    different = [*map(name, recipes), name(digest="other"), name(hashes=("p", "q"))]
    assert len(set(different)) == len(different)


def test_why_a_child_failed() -> None:
    assert child.reason(2, ["model loaded", "x.png: file is empty"]) == "x.png: file is empty"
    assert child.reason(-signal.SIGKILL, ["half"]) == "killed (SIGKILL), most likely for want of memory"
    assert child.reason(-signal.SIGSEGV, []) == "crashed (SIGSEGV)"
    assert child.reason(1, []) == "ended with code 1"


def test_a_calibration_that_fails_costs_its_row_alone(
    job: Comparison, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrated(task: CalibrationTask) -> None:
        assert task.job == job
        if task.recipe.trains:
            raise CalibrationError("calibrating lbq", "crashed (SIGSEGV)")

    monkeypatch.setattr(library, "calibrate_in_child", calibrated)
    made = library.calibrate_all(job, tmp_path, "digest")
    good, bad = job.recipes[:2]
    failure = made[bad]
    assert isinstance(made[good], Path) and isinstance(failure, CalibrationError)
    assert "\nfailed: calibrating lbq: crashed (SIGSEGV)\n" in capsys.readouterr().err
    values = library._failed(bad, failure).to_mapping()
    assert "crashed" in values["error"] and values["psnr_y_db"] is None and values["peak_bytes"] is None


def test_a_failed_row_shows_and_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    scores = Scores("mean", math.inf, 1.0, {"lpips": 0.25})
    rows = [Row("fp", "fp", (), scores, math.inf, 0.0), Row("lbq", "w4a4", ("unet",), error="killed")]
    report = {"rows": [row.to_mapping() for row in rows]}
    with pytest.raises(SystemExit) as ended:
        commands._finish(report, None, as_json=False)
    captured = capsys.readouterr()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in captured.out.splitlines()]
    assert len({len(line) for line in table}) == 1
    assert ended.value.code == 1 and "1 of 2 rows failed" in captured.err
    assert table[0][7:] == ["distance to fp", "LPIPS", "engine MB", "calibration s", "peak GB"]
    assert table[2][3:9] == ["-", "0.000", "1.0000", "-", "-", "0.2500"]
    assert table[3] == ["lbq", "w4a4", "unet", *["failed"] * 9]
    json.dumps(report, allow_nan=False)


def test_the_child_ends_with_its_parent_and_says_into_its_log(job: Comparison, tmp_path: Path) -> None:
    task = CalibrationTask(replace(job, model="nothing"), job.recipes[0], tmp_path / "new" / "c")
    with pytest.raises(CalibrationError, match="calibrating maxmin w8a8 unet: nothing: "):
        in_child(task)
    assert "nothing: " in task.log.read_text()

    for interrupted, calls in ((False, ["terminate", "join", "kill", "join"]), (True, ["join", "kill", "join"])):
        process = Mock()
        child._end(process, interrupted)
        assert [name for name, *_ in process.method_calls] == calls


def test_metrics_that_are_not_installed_are_said_once(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert commands._scorer(None).score(Path("a"), Path("b")) == {}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lpips, dists, musiq" in said and "intsr[metrics]" in said
    with pytest.raises(Exception, match="pyiqa is not installed"):
        commands._scorer("musiq")
