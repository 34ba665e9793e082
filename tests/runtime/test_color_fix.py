"""Both colour fixes against plain torch versions of their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from intsr.errors import UsageError
from intsr.runtime.color_fix import adain, open_color_fix, wavelet
from intsr.runtime.color_fix.wavelet import WAVELET_REACH_PX
from intsr.types import COLOR_FIXES

torch = pytest.importorskip("torch")


def _torch_adain(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    def statistics(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = picture.double().flatten(1)
        return flat.mean(1)[:, None, None], (flat.var(1, unbiased=True) + 1e-5).sqrt()[:, None, None]

    (mean_t, std_t), (mean_s, std_s) = statistics(target), statistics(source)
    return (target.double() - mean_t) / std_t * std_s + mean_s


def _torch_wavelet(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)

    def decompose(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        current, high = picture.double()[None], torch.zeros_like(picture.double())[None]
        for level in range(5):
            radius = 2**level
            padded = torch.nn.functional.pad(current, (radius,) * 4, mode="replicate")
            low = torch.nn.functional.conv2d(padded, kernel, dilation=radius, groups=3)
            high, current = high + current - low, low
        return high[0], current[0]

    return decompose(target)[0] + decompose(source)[1]


def _fixed(
    name: str, target: np.ndarray, source: np.ndarray, heights: Sequence[int] = (1 << 20,), folder: Path | None = None
) -> np.ndarray:
    """Fixed in bands of these heights."""
    fix, bands, cuts = open_color_fix(name, folder), [], [0, *np.cumsum(heights)]
    for top, bottom in pairwise(cuts):
        bands += fix.push(target[:, top:bottom].copy(), source[:, top:bottom])
    return np.concatenate([*bands, *fix.finish()], axis=1)


@pytest.mark.parametrize(("name", "oracle"), [("adain", _torch_adain), ("wavelet", _torch_wavelet)])
@pytest.mark.parametrize("shape", [(3, 61, 47), (3, 2, 64)])
def test_agrees_with_torch(name: str, oracle: object, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    target, source = (rng.random(shape, dtype=np.float32) * width for width in (1.0, 0.6))
    expected = oracle(torch.from_numpy(target), torch.from_numpy(source)).numpy()  # type: ignore[operator]
    before = source.copy()
    np.testing.assert_allclose(_fixed(name, target, source), expected, atol=2e-6)
    np.testing.assert_array_equal(source, before)


def test_none_changes_nothing() -> None:
    target = np.random.default_rng(3).random((3, 9, 9), dtype=np.float32)
    np.testing.assert_array_equal(_fixed("none", target, np.zeros_like(target)), target)


def test_adain_of_one_pixel_takes_the_source() -> None:
    source = np.full((3, 1, 1), 0.4, np.float32)
    np.testing.assert_allclose(_fixed("adain", np.zeros_like(source), source), source, atol=1e-6)


@pytest.mark.parametrize("name", COLOR_FIXES)
@pytest.mark.parametrize("heights", [[1] * 40, [7, 33, 60, 1, 99], [200]])
def test_bands_have_the_bits_of_the_whole(
    name: str, heights: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    target, source = (rng.random((3, sum(heights), 70), dtype=np.float32) for _ in range(2))
    whole = _fixed(name, target, source)
    # Small enough that blocks are cut and rows wait on disk.
    monkeypatch.setattr(wavelet, "_BLOCK_ROWS", 48)
    monkeypatch.setattr(wavelet, "_BLOCK_COLUMNS", 32)
    monkeypatch.setattr(adain, "HELD_BYTES", 40_000)
    np.testing.assert_array_equal(_fixed(name, target, source, heights, tmp_path), whole)
    assert list(tmp_path.iterdir()) == []


def test_wavelet_holds_a_few_rows_only() -> None:
    fix = open_color_fix("wavelet")
    band = np.zeros((3, 64, 50), np.float32)
    given = [sum(rows.shape[1] for rows in fix.push(band.copy(), band)) for _ in range(20)]
    assert sum(given) == 20 * 64 - WAVELET_REACH_PX
    assert sum(rows.shape[1] for rows in fix.finish()) == WAVELET_REACH_PX


def test_statistics_of_a_large_offset_are_exact() -> None:
    """Deviations far below the mean: sums of squares in float32 would lose them."""
    rng = np.random.default_rng(5)
    target = (0.9 + 1e-3 * rng.standard_normal((3, 400, 300))).astype(np.float32)
    source = rng.random((3, 400, 300), dtype=np.float32)
    fixed = _fixed("adain", target, source).astype(np.float64)
    gain = np.sqrt(source.astype(np.float64).var(axis=(1, 2), ddof=1) + 1e-5)
    gain /= np.sqrt(target.astype(np.float64).var(axis=(1, 2), ddof=1) + 1e-5)
    np.testing.assert_allclose(fixed.std(axis=(1, 2)), target.astype(np.float64).std(axis=(1, 2)) * gain, rtol=1e-4)
    np.testing.assert_allclose(fixed.mean(axis=(1, 2)), source.astype(np.float64).mean(axis=(1, 2)), atol=1e-5)


def test_an_unknown_fix_is_refused() -> None:
    with pytest.raises(UsageError, match="--color-fix: 'sepia'"):
        open_color_fix("sepia")
