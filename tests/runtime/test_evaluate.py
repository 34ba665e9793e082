"""`intsr evaluate`: what it prints, and its errors as the shell sees them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data

from intsr.runtime.commands.evaluate import evaluate
from intsr.runtime.measure.metrics import score_pair


@pytest.fixture
def folders(tmp_path):
    """Two pictures: `a` 2 levels brighter than its original, `b` equal to it."""
    for folder, change in (("sr", 2), ("hr", 0)):
        (tmp_path / folder).mkdir()
        for name, picture in (("a", data.coffee()), ("b", data.chelsea())):
            pixels = picture[50:90, 50:100].astype(int) + (change if name == "a" else 0)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    return tmp_path / "sr", tmp_path / "hr"


def _run(*arguments):
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments], catch_exceptions=False)


def test_json(folders):
    sr, hr = folders
    (sr / "b.png").unlink()
    result = _run(sr, hr, "--allow-missing", "--json")
    answer = json.loads(result.stdout)
    expected = score_pair(sr / "a.png", hr / "a.png")
    numbers = {"psnr_y_db": pytest.approx(expected.psnr_y_db), "ssim_y": pytest.approx(expected.ssim_y)}
    per_image = [{"name": "a", **numbers}]
    assert answer == {"images": 1, **numbers, "ssim_rule": "pyiqa", "left_out": 1, "per_image": per_image}
    assert result.stdout.count("\n") == 1
    assert "left out, for want of a partner: b" in result.stderr


def test_ssim_by_either_rule(folders):
    sr, hr = folders
    # Dark for light: structure is negative everywhere, so that one rule says 0 and the other less.
    Image.fromarray(255 - np.asarray(Image.open(hr / "a.png"))).save(sr / "a.png")
    answers = {rule: json.loads(_run(sr, hr, "--ssim", rule, "--json").stdout) for rule in ("pyiqa", "wang")}
    for rule, answer in answers.items():
        expected = score_pair(sr / "a.png", hr / "a.png", ssim_rule=rule).ssim_y
        assert (answer["ssim_rule"], answer["per_image"][0]["ssim_y"]) == (rule, pytest.approx(expected))
    default, wang = answers["pyiqa"]["per_image"][0], answers["wang"]["per_image"][0]
    assert wang["ssim_y"] < -0.1 < 0 <= default["ssim_y"]
    assert wang["psnr_y_db"] == pytest.approx(default["psnr_y_db"])
    assert json.loads(_run(sr, hr, "--json").stdout)["ssim_y"] == pytest.approx(answers["pyiqa"]["ssim_y"])
    assert _run(sr, hr, "--ssim", "matlab").exit_code == 2


def test_identical_pictures_are_null_in_json_and_inf_in_the_table(folders):
    answer = json.loads(_run(*folders, "--json").stdout)
    assert answer["psnr_y_db"] is None
    assert [image["psnr_y_db"] is None for image in answer["per_image"]] == [False, True]
    assert answer["per_image"][1]["ssim_y"] == pytest.approx(1)
    rows = [line.split() for line in _run(*folders).stdout.splitlines()]
    assert ["b", "inf", "1.0000"] in rows


def test_table_has_a_row_a_picture_and_the_mean(folders):
    sr, hr = folders
    expected = score_pair(sr / "a.png", hr / "a.png", 4)
    (sr / "b.png").unlink(), (hr / "b.png").unlink()
    rows = [line.split() for line in _run(sr, hr, "--crop-border", 4).stdout.splitlines()]
    numbers = [f"{expected.psnr_y_db:.4f}", f"{expected.ssim_y:.4f}"]
    assert ["a", *numbers] in rows
    assert ["mean", "of", "1", *numbers] in rows


@pytest.mark.parametrize("case", ["missing", "size", "broken", "folder", "metric"])
def test_user_errors_are_one_line_and_exit_2(intsr, folders, case):
    sr, hr = folders
    arguments = [str(sr), str(hr)]
    if case == "missing":
        (sr / "b.png").unlink()
    elif case == "size":
        Image.open(hr / "a.png").crop((0, 0, 40, 39)).save(sr / "a.png")
    elif case == "broken":
        (sr / "a.png").write_bytes((hr / "a.png").read_bytes()[:200])
    elif case == "folder":
        arguments[0] = str(sr / "nothing")
    else:
        arguments += ["--metrics", "fid"]
    code, out, err = intsr("evaluate", *arguments, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("intsr: error: ")
    assert {"missing": "b", "size": "a.png", "broken": "a.png", "folder": "nothing", "metric": "fid"}[case] in err
