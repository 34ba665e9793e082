"""`intsr calibrate`: nothing is lost, nothing given is ignored, pictures that cannot be read are passed over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.calib.calibration.files import load_calibration
from intsr.calib.commands import calibrate as commands
from intsr.calib.learn.journal import Journal

Intsr = Callable[..., tuple[int, str, str]]
ONE_PASS = ("--method", "maxmin", "--parts", "vae", "--tile", 16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def given(tiny_folder: Path, pictures: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("calibrate", tiny_folder, "--images", pictures, "-o", tmp_path / "c")


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("intsr: error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err
    assert all(word in lines[0] for word in words), lines[0]


def test_one_pass_does_not_touch_a_work_folder(intsr: Intsr, given: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "c.work").mkdir()
    (tmp_path / "c.work" / "notes.txt").write_text("mine")
    assert intsr(*given, *ONE_PASS)[0] == 0
    assert (tmp_path / "c.work" / "notes.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "c.work")
    Journal(tmp_path / "c.work", {"an interrupted": "training"}).close()
    assert intsr(*given, *ONE_PASS)[0] == 0
    assert (tmp_path / "c.work" / "run.json").is_file()


def test_training_refuses_a_work_folder_of_something_else(
    intsr: Intsr, given: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "c.work").mkdir()
    (tmp_path / "c.work" / "notes.txt").write_text("mine")
    for restart in ((), ("--restart",)):
        assert_refused(intsr(*given, "--tile", 16, *restart), "c.work", "holds notes.txt", "move it away")
    assert [path.name for path in (tmp_path / "c.work").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "c").exists()


def test_one_pass_refuses_options_of_training(intsr: Intsr, given: tuple[object, ...], tmp_path: Path) -> None:
    for options in (
        *(("--device", "cuda"), ("--mixed",), ("--rate", 7), ("--crop", 16), ("--crops", 12), ("--seed", 3)),
        *(("--cache", "disk"), ("--batch", 9), ("--recompute",), ("--block-steps", 1), ("--joint-steps", 1)),
        ("--restart",),
    ):
        result = intsr(*given, *ONE_PASS, *options)
        assert_refused(result, f"{options[0]}: together with --method maxmin, which takes one pass")
    assert not (tmp_path / "c").exists()


def test_options_that_would_change_nothing(intsr: Intsr, given: tuple[object, ...], tmp_path: Path) -> None:
    assert_refused(intsr(*given, "--method", "qartsr", "--cache", "disk"), "--cache: together with --method qartsr")
    assert_refused(intsr(*given, "--budget", 5, "--dry-run"), "--budget: together with --dry-run")
    assert not (tmp_path / "c").exists()


def test_only_the_crops_default_gives_way_to_the_tile(intsr: Intsr, given: tuple[object, ...]) -> None:
    assert_refused(intsr(*given, "--tile", 16, "--crop", 64), "--crop: 64", "at most --tile 16")
    for options, crop_px in ((("--tile", "16"), 16), ((), 32), (("--crop", "64", "--tile", "16"), 64)):
        context = commands.calibrate.make_context("calibrate", ["demo", *options])
        assert context.params["crop_px"] == crop_px


def test_parts_of_what_is_not_quantized(intsr: Intsr, tiny_folder: Path, tmp_path: Path) -> None:
    result = intsr("compile", tiny_folder, "--bits", "fp", "--parts", "unet", "-o", tmp_path / "x.engine")
    assert_refused(result, "--parts: together with --bits fp")


def test_a_dry_run_needs_no_output(intsr: Intsr, tiny_folder: Path, pictures: Path) -> None:
    arguments = ("calibrate", tiny_folder, "--images", pictures, "--parts", "vae", "--tile", 16)
    code, out, err = intsr(*arguments, "--crop", 8, "--batch", 1, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["dry_run"] is True, err
    assert_refused(intsr(*arguments), "-o: not given", "--dry-run")
    assert_refused(intsr(*arguments, "--dry-run", "--restart"), "--restart: together with --dry-run")


def test_the_same_settings_replace_and_others_do_not(
    intsr: Intsr, given: tuple[object, ...], tmp_path: Path, tiny_folder: Path
) -> None:
    code, _, err = intsr(*given, *ONE_PASS)
    assert code == 0 and "replaced" not in err
    code, _, err = intsr(*given, *ONE_PASS)
    assert code == 0 and "made before with the same model, method, bits and parts; it will be replaced" in err
    made = (tmp_path / "c" / "ranges.safetensors").read_bytes()
    other_model = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    settings = json.loads((other_model / "intsr_model.json").read_text())
    (other_model / "intsr_model.json").write_text(json.dumps(settings | {"timestep": 500}))
    for arguments, words in (
        ((*given, *ONE_PASS, "--bits", "w6a6"), ("with bits w8a8; expected bits w6a6", "--overwrite")),
        ((*given, *ONE_PASS, "--parts", "unet"), ("with parts vae; expected parts unet",)),
        ((*given, *ONE_PASS, "--method", "maxmin+let"), ("with method maxmin; expected method maxmin+let",)),
        (("calibrate", other_model, *given[2:], *ONE_PASS), ("with model tiny (", "; expected model tiny (")),
    ):
        assert_refused(intsr(*arguments), "holds a calibration", *words)
        assert (tmp_path / "c" / "ranges.safetensors").read_bytes() == made
    code, _, err = intsr(*given, *ONE_PASS, "--bits", "w6a6", "--overwrite")
    assert code == 0 and "will be replaced" in err
    assert str(load_calibration(tmp_path / "c").bits) == "w6a6"


def test_one_that_cannot_be_read_is_not_replaced(intsr: Intsr, given: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "calibration.json").write_text("{}")
    assert_refused(intsr(*given, *ONE_PASS), "holds a calibration that cannot be read", "--overwrite")
    assert intsr(*given, *ONE_PASS, "--overwrite")[0] == 0


def test_an_import_is_not_replaced_by_another(
    intsr: Intsr, given: tuple[object, ...], tiny_folder: Path, passionsr_files: list[Path], tmp_path: Path
) -> None:
    assert intsr(*given, *ONE_PASS)[0] == 0
    imported = ("calibrate", tiny_folder, "--passionsr", *passionsr_files, "--tile", 8, "-o", tmp_path / "c")
    assert_refused(intsr(*imported), "method maxmin", "passionsr-official", "--overwrite")
    assert intsr(*imported, "--overwrite")[0] == 0
    code, _, err = intsr(*imported)
    assert code == 0 and "it will be replaced" in err


@pytest.fixture
def mixed(pictures: Path, tmp_path: Path) -> Path:
    """Three good pictures, and between them a transparent one, a truncated one, no picture, and a flat one."""
    folder = Path(shutil.copytree(pictures, tmp_path / "mixed"))
    Image.new("RGBA", (16, 16)).save(folder / "0 transparent.png")
    whole = (pictures / "1.png").read_bytes()
    (folder / "1 truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2 words.jpg").write_text("words")
    # In each channel, not only grey.
    Image.new("RGB", (16, 16), (120, 170, 235)).save(folder / "3 sky.png")
    return folder


def test_pictures_that_cannot_be_used_are_named_and_skipped(
    intsr: Intsr, given: tuple[object, ...], tiny_folder: Path, mixed: Path, tmp_path: Path
) -> None:
    assert intsr(*given, *ONE_PASS)[0] == 0
    arguments = ("calibrate", tiny_folder, "--images", mixed, *ONE_PASS, "--json", "-o")
    code, out, err = intsr(*arguments, tmp_path / "d")
    assert code == 0 and json.loads(out)["pictures"] == 3
    assert "4 of 7 skipped" in err and err.count("skipped: ") == 4
    for name in (
        "0 transparent.png: transparent pixels",
        "1 truncated.png",
        "2 words.jpg",
        "3 sky.png: shows nothing",
    ):
        assert name in err
    ranges = [(tmp_path / name / "ranges.safetensors").read_bytes() for name in "cd"]
    assert ranges[0] == ranges[1]
    # --limit counts those that are used.
    assert json.loads(intsr(*arguments, tmp_path / "e", "--limit", 2)[1])["pictures"] == 2


def test_too_few_that_remain_are_an_error(intsr: Intsr, tiny_folder: Path, mixed: Path, tmp_path: Path) -> None:
    arguments = ("calibrate", tiny_folder, "--images", mixed, "--tile", 16, "-o", tmp_path / "c")
    for name in ("0.png", "1.png"):
        (mixed / name).unlink()
    assert_refused(intsr(*arguments), "1 pictures", "at least 2 pictures")
    (mixed / "2.png").unlink()
    assert_refused(intsr(*arguments), "none of its 4 pictures can be used; the first:", "0 transparent.png")
    for name in ("1 truncated.png", "2 words.jpg", "3 sky.png"):
        (mixed / name).unlink()
    assert_refused(intsr(*arguments), "0 transparent.png: transparent pixels")
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_compiling_passes_over_them_too(intsr: Intsr, tiny_folder: Path, mixed: Path, tmp_path: Path) -> None:
    arguments = ("compile", tiny_folder, "--images", mixed, "--tile", 16, "-o", tmp_path / "x.engine")
    code, _, err = intsr(*arguments)
    assert code == 0 and err.count("skipped: ") == 4, err


def test_the_guard_can_be_left_out_and_clipped_shares_are_told(
    intsr: Intsr, given: tuple[object, ...], tmp_path: Path
) -> None:
    assert intsr(*given, *ONE_PASS)[0] == 0
    assert intsr(*given[:-1], tmp_path / "bare", *ONE_PASS, "--no-guard")[0] == 0
    guarded, bare = (load_calibration(tmp_path / name) for name in ("c", "bare"))
    wider = [site for site in guarded.sites if guarded.sites[site].x_max > bare.sites[site].x_max]
    assert any("downsamplers" in site for site in wider)
    assert max(s.guard for s in guarded.clipped.values()) < max(s.guard for s in bare.clipped.values())
    worst = json.loads(intsr("inspect", tmp_path / "bare", "--json")[1])["calibration"]["most_clipped"]["guard"]
    assert worst["share"] == bare.clipped[worst["site"]].guard == max(s.guard for s in bare.clipped.values())
    _, out, _ = intsr("inspect", tmp_path / "bare", "--layers")
    assert f"at most {worst['share']:.2%}, in {worst['site']}" in out
    assert f"of the guard's {worst['share']:.2%}" in out


@pytest.mark.slow
def test_bits_that_lose_the_picture_are_said_with_the_number(
    intsr: Intsr, demo_picture: Path, tmp_path: Path
) -> None:
    arguments = ("calibrate", "demo", "--images", demo_picture.parent, "--method", "maxmin", "--tile", 64)
    code, _, err = intsr(*arguments, "--bits", "w2a2", "-o", tmp_path / "w2a2")
    assert code == 0
    found = re.search(r"warning: w2a2 with maxmin is ([\d.]+) dB from full precision.*enlargement ([\d.]+) dB", err)
    assert found is not None and float(found[1]) < float(found[2])
    code, _, err = intsr(*arguments, "--bits", "w8a8", "-o", tmp_path / "w8a8")
    assert code == 0 and "warning" not in err
