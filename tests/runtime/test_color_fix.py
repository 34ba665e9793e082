"""Both colour fixes against plain torch versions of METHODS.md's definitions."""

from __future__ import annotations

import numpy as np
import pytest

from intsr.runtime.color_fix import fix_colors

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


@pytest.mark.parametrize(("name", "oracle"), [("adain", _torch_adain), ("wavelet", _torch_wavelet)])
@pytest.mark.parametrize("shape", [(3, 61, 47), (3, 5, 3), (3, 2, 64)])
def test_agrees_with_torch(name: str, oracle: object, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    target, source = (rng.random(shape, dtype=np.float32) * width for width in (1.0, 0.6))
    expected = oracle(torch.from_numpy(target), torch.from_numpy(source)).numpy()  # type: ignore[operator]
    before = source.copy()
    fixed = fix_colors(target.copy(), source, name)
    np.testing.assert_allclose(fixed, expected, atol=2e-6)
    np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_takes_a_colour_shift_back(name: str) -> None:
    rng = np.random.default_rng(2)
    source = rng.random((3, 40, 40), dtype=np.float32) * 0.5 + 0.2
    shift = np.array([0.1, -0.05, 0.02], np.float32)[:, None, None]
    np.testing.assert_allclose(fix_colors(source + shift, source, name), source, atol=1e-5)


def test_none_changes_nothing() -> None:
    target = np.random.default_rng(3).random((3, 9, 9), dtype=np.float32)
    np.testing.assert_array_equal(fix_colors(target.copy(), np.zeros_like(target), "none"), target)


def test_adain_of_one_pixel_takes_the_source() -> None:
    source = np.full((3, 1, 1), 0.4, np.float32)
    np.testing.assert_allclose(fix_colors(np.zeros((3, 1, 1), np.float32), source, "adain"), source, atol=1e-6)
