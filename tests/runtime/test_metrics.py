"""PSNR and SSIM against hand-computed values and against scikit-image; pairing of folders."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from intsr.errors import ImageError, MissingLibraryError, UsageError
from intsr.runtime.measure.metrics import (
    EXACT_DB,
    PerceptualScorer,
    Scores,
    luma_from_pixels,
    mean_scores,
    pair_folders,
    parse_metrics,
    psnr_db,
    psnr_db_from_mse,
    score_pair,
    ssim,
)

RNG = np.random.default_rng(5)


def _noisy_pair(deviation: float) -> tuple[np.ndarray, np.ndarray]:
    original = data.astronaut()[100:220, 150:301]
    noisy = np.clip(original + RNG.normal(0, deviation, original.shape), 0, 255).round().astype(np.uint8)
    return luma_from_pixels(noisy.astype(float)), luma_from_pixels(original.astype(float))


def test_luma_is_bt601_limited_range_and_unrounded():
    pixels = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (100, 150, 200)]
    luma = [16, 235, 81.481, 144.553, 40.966, 16 + (65.481 * 100 + 128.553 * 150 + 24.966 * 200) / 255]
    assert luma_from_pixels(np.array([pixels], float))[0] == pytest.approx(luma, abs=1e-12)


@given(level=st.floats(0, 255))
def test_grey_counts_as_three_equal_components(level):
    grey, colour = np.full((1, 1), level), np.full((1, 1, 3), level)
    assert luma_from_pixels(grey)[0, 0] == pytest.approx(luma_from_pixels(colour)[0, 0], abs=1e-10)


def test_psnr_of_known_differences():
    zeros = np.zeros((4, 4))
    assert psnr_db(zeros, zeros + 255) == 0
    assert psnr_db(zeros, zeros + 25.5) == pytest.approx(20)
    one_pixel = zeros.copy()
    one_pixel[0, 0] = 4  # mean square 16 / 16 = 1
    assert psnr_db(zeros, one_pixel) == pytest.approx(10 * math.log10(65025))
    assert psnr_db(zeros, zeros) == math.inf
    assert psnr_db_from_mse(0.04, peak=2) == pytest.approx(20)
    assert psnr_db_from_mse(0, peak=2) == psnr_db_from_mse(1e-30, peak=2) == EXACT_DB


def _ssim_by_loops(first, second, rule):
    """SSIM window by window, from its definition: weighted means of squared differences from the mean."""
    if rule == "pyiqa":
        first, second = np.round(first), np.round(second)
    axis = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (picture[top : top + 11, left : left + 11] for picture in (first, second))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variances = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            structure = (2 * covariance + 58.5225) / (variances + 58.5225)
            if rule == "pyiqa" and structure < 0:
                structure = 0
            values.append(structure * (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025))
    return sum(values) / len(values)


@pytest.mark.parametrize("rule", ["pyiqa", "wang"])
@pytest.mark.parametrize("shape", [(11, 11), (14, 19)])
def test_ssim_is_the_formula_itself_in_every_window(shape, rule):
    for first, second in (RNG.uniform(0, 255, (2, *shape)), RNG.uniform(90, 110, (2, *shape))):
        assert ssim(first, second, rule) == pytest.approx(_ssim_by_loops(first, second, rule), abs=1e-12)
        assert ssim(first, 255 - first, rule) == pytest.approx(_ssim_by_loops(first, 255 - first, rule), abs=1e-12)


@pytest.mark.parametrize("deviation", [1.0, 60.0])
def test_wangs_rule_agrees_with_scikit_image(deviation):
    sr, hr = _noisy_pair(deviation)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(sr, hr, "wang") == pytest.approx(structural_similarity(sr, hr, **options), abs=1e-9)
    assert psnr_db(sr, hr) == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-9)


@pytest.mark.parametrize(("rule", "least"), [("pyiqa", 0), ("wang", -1)])
@given(arrays(np.uint8, (2, 13, 12)))
def test_ssim_is_symmetric_bounded_and_one_for_equals(rule, least, pictures):
    first, second = pictures.astype(float)
    assert ssim(first, second, rule) == pytest.approx(ssim(second, first, rule), abs=1e-12)
    assert least - 1e-9 <= ssim(first, second, rule) <= 1 + 1e-9
    assert ssim(first, first, rule) == pytest.approx(1, abs=1e-9)


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_pair_scores_what_the_files_hold(tmp_path):
    original = data.coffee()[:64, :80]
    degraded = np.clip(original.astype(int) + 3, 0, 255).astype(np.uint8)
    scores = score_pair(_save(tmp_path / "sr" / "a.png", degraded), _save(tmp_path / "hr" / "a.png", original))
    sr, hr = (luma_from_pixels(picture.astype(float)) for picture in (degraded, original))
    assert scores.name == "a"
    assert (scores.psnr_y_db, scores.ssim_y) == pytest.approx((psnr_db(sr, hr), ssim(sr, hr)), abs=1e-9)
    # PSNR takes luma unrounded by either rule.
    by_wang = score_pair(tmp_path / "sr" / "a.png", tmp_path / "hr" / "a.png", ssim_rule="wang")
    assert (by_wang.psnr_y_db, by_wang.ssim_y) == pytest.approx((scores.psnr_y_db, ssim(sr, hr, "wang")), abs=1e-9)


def test_border_is_cut_off_both_pictures(tmp_path):
    original = data.coffee()[:40, :50]
    framed = original.copy()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 0, 0, 0
    sr, hr = _save(tmp_path / "sr.png", framed), _save(tmp_path / "hr.png", original)
    assert score_pair(sr, hr, 4).psnr_y_db == math.inf
    assert score_pair(sr, hr, 3).psnr_y_db < 40


def test_grey_is_colour_and_sixteen_bits_are_scaled_not_cut(tmp_path):
    grey = data.camera()[:40, :40]
    eight = _save(tmp_path / "8.png", grey)
    scores = score_pair(_save(tmp_path / "colour.png", np.repeat(grey[..., None], 3, 2)), eight)
    assert scores.psnr_y_db > 250  # equal but for float64's rounding
    assert scores.ssim_y == pytest.approx(1)
    assert score_pair(_save(tmp_path / "16.png", grey.astype(np.uint16) * 257), eight).psnr_y_db == math.inf
    # Half of an eight-bit level more, everywhere, is 0.5 x 219 / 255 of luma.
    between = np.minimum(grey.astype(np.uint16), 254) * 257 + 128
    base = _save(tmp_path / "base.png", np.minimum(grey, 254))
    expected = 20 * math.log10(255 / (128 / 257 * 219 / 255))
    assert score_pair(_save(tmp_path / "between.png", between), base).psnr_y_db == pytest.approx(expected)


def test_sizes_that_differ_are_an_error_that_names_the_file(tmp_path):
    sr = _save(tmp_path / "sr" / "a.png", data.coffee()[:40, :50])
    hr = _save(tmp_path / "hr" / "a.png", data.coffee()[:40, :51])
    with pytest.raises(ImageError, match=r"sr/a\.png: 50x40 pixels; expected 51x40 pixels, as .*hr/a\.png"):
        score_pair(sr, hr)


@pytest.mark.parametrize(("side", "border"), [(10, 0), (30, 10), (11, 1)])
def test_less_than_ssims_window_is_an_error(tmp_path, side, border):
    picture = _save(tmp_path / "a.png", data.coffee()[:side, :40])
    with pytest.raises(ImageError, match="at least 11"):
        score_pair(picture, picture, border)


def test_mean_is_arithmetic_and_infinite_with_identical_pictures():
    first, second = Scores("a", 20.0, 0.5, {"lpips": 0.2}), Scores("b", 30.0, 0.7, {"lpips": 0.4})
    mean = mean_scores([first, second])
    assert (mean.psnr_y_db, mean.ssim_y) == (25, pytest.approx(0.6))
    assert mean.perceptual == {"lpips": pytest.approx(0.3)}
    assert mean_scores([first, Scores("c", math.inf, 1.0, {"lpips": 0.0})]).psnr_y_db == math.inf


def _folders(tmp_path, sr_names, hr_names):
    for folder, names in (("sr", sr_names), ("hr", hr_names)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / folder / name).touch()
    return tmp_path / "sr", tmp_path / "hr"


def test_pairs_by_exact_name_whatever_the_extension(tmp_path):
    sr, hr = _folders(tmp_path, ["b.png", "a.b.PNG", "notes.txt", ".hidden.png"], ["a.b.jpg", "b.tif"])
    pairing = pair_folders(sr, hr)
    assert pairing.pairs == ((sr / "a.b.PNG", hr / "a.b.jpg"), (sr / "b.png", hr / "b.tif"))
    assert (pairing.only_sr, pairing.only_hr) == ((), ())


def test_a_common_prefix_is_not_a_pair_and_many_missing_names_stay_one_line(tmp_path):
    sr, hr = _folders(tmp_path, ["a_x4.png", "b.png"], ["a.png", "b.png"])
    with pytest.raises(UsageError, match=r"hr: no picture named a_x4; .*--allow-missing"):
        pair_folders(sr, hr)
    pairing = pair_folders(sr, hr, allow_missing=True)
    assert (len(pairing.pairs), pairing.only_sr, pairing.only_hr) == (1, ("a_x4",), ("a",))
    (sr / "a_x4.png").unlink()
    _folders(tmp_path, [], ["c.png", "d.png", "e.png"])
    with pytest.raises(UsageError, match="sr: no picture named a, c, d and 1 more"):
        pair_folders(sr, hr)


@pytest.mark.parametrize(
    ("sr_names", "hr_names", "message"),
    [
        ([], ["a.png"], "sr: no pictures"),
        (["a.png"], ["a.txt"], "hr: no pictures"),
        (["a.png", "a.jpg"], ["a.png"], "the same name as a.jpg"),
        (["a.png"], ["b.png"], "no picture shares a name"),
    ],
)
def test_folders_that_cannot_be_paired(tmp_path, sr_names, hr_names, message):
    with pytest.raises(UsageError, match=message):
        pair_folders(*_folders(tmp_path, sr_names, hr_names), allow_missing=True)
    with pytest.raises(UsageError, match="no such folder"):
        pair_folders(tmp_path / "nothing", tmp_path)


def test_metric_names_are_checked_before_anything_is_imported():
    assert parse_metrics("lpips,musiq") == ("lpips", "musiq")
    assert parse_metrics("") == ()
    for text in ("lpips,", "ssim", "lpips,lpips"):
        with pytest.raises(UsageError, match="--metrics"):
            parse_metrics(text)


def test_what_pyiqa_lacks_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert PerceptualScorer(()).score(Path("a"), Path("b")) == {}  # none asked for, none needed
    with pytest.raises(MissingLibraryError, match=r'--metrics lpips: pyiqa is not installed; .*"intsr\[metrics\]"'):
        PerceptualScorer(("lpips",))
    monkeypatch.setitem(sys.modules, "pyiqa", Mock(**{"create_metric.side_effect": OSError("no network")}))
    with pytest.raises(UsageError, match=r"--metrics lpips: cannot load its weights \(no network\)"):
        PerceptualScorer(("lpips",))


def test_full_reference_metrics_see_both_pictures_and_the_others_one(monkeypatch, tmp_path):
    class Metric:
        def __init__(self, name):
            self.metric_mode = "FR" if name == "lpips" else "NR"

        def __call__(self, *paths):
            assert all(isinstance(path, str) for path in paths)
            return len(paths)

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=Metric))
    scorer = PerceptualScorer(("lpips", "musiq"))
    assert scorer.score(tmp_path / "sr.png", tmp_path / "hr.png") == {"lpips": 2, "musiq": 1}
