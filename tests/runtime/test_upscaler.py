"""Any picture size through static networks: with identity networks, the output is the enlarged input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from intsr.errors import ImageError, UsageError, VerificationError
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.engine import open_engine
from intsr.runtime.upscaler import STAGES, Upscaler
from intsr.types import COLOR_FIXES, TensorInfo

FACTOR = 2


class FunctionNetwork:
    """Any function of an array in the place of a network."""

    def __init__(self, function=lambda x: x, side_px: int = 32, dtype: str = "float32") -> None:
        self.function = function
        self.input = self.output = TensorInfo("x", (1, 3, side_px, side_px), dtype)
        self.seen: list[np.ndarray] = []

    def run(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(x)
        return np.asarray(self.function(x), self.output.dtype)

    def close(self) -> None:
        self.seen.clear()


def _upscaler(function=lambda x: x, **changes: object) -> Upscaler:
    networks = (FunctionNetwork(), FunctionNetwork(), FunctionNetwork(function))
    values = {"tile_px": 16, "overlap_px": 4, "upscale_factor": FACTOR, "resize_filter": "bicubic"}
    return Upscaler(Backend(networks), **{**values, "color_fix": "none", **changes})  # type: ignore[arg-type]


def _bicubic(pixels: np.ndarray) -> np.ndarray:
    size = (pixels.shape[1] * FACTOR, pixels.shape[0] * FACTOR)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 15), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_identity_networks_give_the_enlarged_picture_exactly(
    height: int, width: int, overlap_px: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    output = _upscaler().upscale(pixels, overlap_px=overlap_px)
    np.testing.assert_array_equal(output, _bicubic(pixels))


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), color_fix=st.sampled_from(COLOR_FIXES))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_engines_of_every_target_do_too(any_engine: Path, size: tuple[int, int], color_fix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with open_engine(any_engine, threads=1, precision="f32") as engine:
        np.testing.assert_array_equal(engine.upscale(pixels, color_fix=color_fix), _bicubic(pixels))


@pytest.mark.parametrize("batch", [3, 40])
def test_networks_that_take_several_tiles(photo: np.ndarray, batch: int) -> None:
    networks = tuple(FunctionNetwork() for _ in range(3))
    for network in networks:
        network.input = network.output = TensorInfo("x", (batch, 3, 32, 32), "float32")
    output = Upscaler(Backend(networks), 16, 4, FACTOR, resize_filter="bicubic", color_fix="none").upscale(photo)  # type: ignore[arg-type]
    np.testing.assert_array_equal(output, _bicubic(photo))
    assert {x.shape[0] for x in networks[2].seen} == {batch}
    assert len(networks[2].seen) == -(-30 // batch)
    if batch == 40:
        assert not networks[0].seen[0][30:].any(), "filled up with zeros"


def test_grey_stays_grey(photo: np.ndarray) -> None:
    grey = photo[..., 0]
    np.testing.assert_array_equal(_upscaler().upscale(grey), _bicubic(np.ascontiguousarray(grey)))


def test_16_bits_stay_16_bits(photo: np.ndarray) -> None:
    fine = photo.astype(np.uint16) * 257
    output = _upscaler().upscale(fine)
    assert output.dtype == np.uint16
    difference = np.abs(output / 257 - _bicubic(photo))
    assert difference.max() <= 2  # Pillow's 8-bit resize rounds twice
    assert difference.mean() < 0.5
    assert len(np.unique(output)) > 256


def test_a_pillow_image_comes_back_as_one(photo: np.ndarray) -> None:
    output = _upscaler().upscale(Image.fromarray(photo))
    assert isinstance(output, Image.Image)
    np.testing.assert_array_equal(np.asarray(output), _bicubic(photo))


def test_networks_see_values_from_minus_one_to_one() -> None:
    upscaler = _upscaler()
    upscaler.upscale(np.array([[0, 255] * 8] * 16, np.uint8))
    (x,) = upscaler.networks[0].seen  # type: ignore[attr-defined]
    assert x.shape == (1, 3, 32, 32)
    assert (x.min(), x.max()) == (-1, 1)


def test_seams_are_blended_when_tiles_disagree() -> None:
    """Each tile gets its own brightness: with overlap, no step at a border is left."""
    levels = iter(np.linspace(-0.5, 0.5, 16))
    upscaler = _upscaler(lambda x: np.full_like(x, next(levels)))
    rng = np.random.default_rng(0)
    output = upscaler.upscale(rng.integers(0, 256, (16, 52, 3)).astype(np.uint8), overlap_px=8)
    steps = np.abs(np.diff(output[5, :, 0].astype(int)))
    assert output[5, 0, 0] != output[5, -1, 0]
    assert steps.max() <= 2


def test_timings_cover_the_whole(photo: np.ndarray) -> None:
    result = _upscaler().upscale_with_timings(photo, color_fix="wavelet")
    assert tuple(result.stages_ms) == STAGES
    assert result.tiles == 30
    assert all(value > 0 for value in result.stages_ms.values())
    assert 0.5 * result.total_ms < sum(result.stages_ms.values()) <= result.total_ms


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_output_that_is_no_number_is_an_error(photo: np.ndarray, value: float) -> None:
    def spoil(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[0, 1, 3, 3] = value
        return x

    with pytest.raises(VerificationError, match="NaN or infinite"):
        _upscaler(spoil).upscale(photo)


def test_a_flat_output_is_an_error_only_where_the_input_is_not(photo: np.ndarray) -> None:
    with pytest.raises(VerificationError, match="flat"):
        _upscaler(np.zeros_like).upscale(photo)
    flat = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(_upscaler().upscale(flat), np.full((40, 40, 3), 77))


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros(4, np.uint8),
        Image.new("CMYK", (4, 4)),
    ],
)
def test_other_arrays_are_refused(picture: object) -> None:
    with pytest.raises(ImageError):
        _upscaler().upscale(picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"color_fix": "sepia"}, {"overlap_px": 16}, {"overlap_px": -1}])
def test_other_options_are_refused(photo: np.ndarray, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        _upscaler().upscale(photo, **options)  # type: ignore[arg-type]


def test_networks_of_another_tile_size_are_refused() -> None:
    with pytest.raises(UsageError, match="encoder input"):
        _upscaler(tile_px=32)


def test_a_half_precision_network_gets_its_dtype(photo: np.ndarray) -> None:
    networks = (FunctionNetwork(), FunctionNetwork(), FunctionNetwork(dtype="float16"))
    output = Upscaler(Backend(networks), 16, 4, FACTOR, resize_filter="bicubic", color_fix="none").upscale(photo)
    assert np.abs(output.astype(int) - _bicubic(photo)).max() <= 1


def test_many_pictures_of_any_kind_one_after_another(photo: np.ndarray) -> None:
    pictures = [photo, Image.fromarray(photo[:20]), photo[..., 0], photo.astype(np.uint16) * 257, photo[:, :9]]
    upscaler = _upscaler()
    made = list(upscaler.upscale_many(iter(pictures), color_fix="wavelet"))
    assert len(made) == len(pictures)
    for picture, result in zip(pictures, made, strict=True):
        alone = upscaler.upscale(picture, color_fix="wavelet")
        assert type(result) is type(alone)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(alone))


def test_a_bad_frame_ends_the_many_at_its_turn(photo: np.ndarray) -> None:
    made = _upscaler().upscale_many([photo, np.zeros((4, 4, 4), np.uint8), photo])
    next(made)
    with pytest.raises(ImageError, match="shape"):
        next(made)


def test_a_buffer_may_be_used_again_for_the_next_frame(photo: np.ndarray) -> None:
    frames = [np.roll(photo, 7 * index, 1) for index in range(6)]
    buffer, picture = np.empty_like(photo), Image.new("RGB", photo.shape[1::-1])

    def decoded() -> Iterator[np.ndarray | Image.Image]:
        for index, frame in enumerate(frames):
            buffer[:] = frame
            picture.paste(Image.fromarray(frame))
            yield picture if index % 2 else buffer

    for frame, made in zip(frames, _upscaler().upscale_many(decoded()), strict=True):
        np.testing.assert_array_equal(np.asarray(made), _bicubic(frame))
