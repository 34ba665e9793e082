"""Any picture size through static networks: with identity networks, the output is the enlarged input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import FunctionNetwork, bicubic, upscaler_of
from PIL import Image

from intsr.errors import ImageError, UsageError, VerificationError
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.engine import open_engine
from intsr.runtime.upscaler import STAGES, Upscaler
from intsr.types import COLOR_FIXES, TensorInfo


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 15), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_identity_networks_give_the_enlarged_picture_exactly(
    height: int, width: int, overlap_px: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    np.testing.assert_array_equal(upscaler_of().upscale(pixels, overlap_px=overlap_px), bicubic(pixels))


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), color_fix=st.sampled_from(COLOR_FIXES))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_engines_of_every_target_do_too(any_engine: Path, size: tuple[int, int], color_fix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with open_engine(any_engine, threads=1, precision="f32") as engine:
        np.testing.assert_array_equal(engine.upscale(pixels, color_fix=color_fix), bicubic(pixels))


@pytest.mark.parametrize("batch", [3, 40])
def test_networks_that_take_several_tiles(photo: np.ndarray, batch: int) -> None:
    seen: list[np.ndarray] = []
    networks = [FunctionNetwork(lambda x: seen.append(x) or x, batch=batch), FunctionNetwork(batch=batch)]
    output = Upscaler(
        Backend(networks, names=("first", "last")), 16, 4, 2, resize_filter="bicubic", color_fix="none"
    ).upscale(photo)
    np.testing.assert_array_equal(output, bicubic(photo))
    assert [x.shape[0] for x in seen] == [batch] * -(-30 // batch)
    if batch == 40:
        assert not seen[0][30:].any(), "filled up with zeros"


def test_grey_stays_grey_and_a_pillow_image_one(photo: np.ndarray) -> None:
    output = upscaler_of().upscale(Image.fromarray(photo[..., 0]))
    assert isinstance(output, Image.Image) and output.mode == "L"
    np.testing.assert_array_equal(np.asarray(output), bicubic(photo[..., 0]))


def test_16_bits_stay_16_bits(photo: np.ndarray) -> None:
    output = upscaler_of().upscale(photo.astype(np.uint16) * 257)
    assert output.dtype == np.uint16
    difference = np.abs(output / 257 - bicubic(photo))
    assert difference.max() <= 2  # Pillow's 8-bit resize rounds twice
    assert difference.mean() < 0.5
    assert len(np.unique(output)) > 256


def test_networks_see_values_from_minus_one_to_one() -> None:
    seen: list[np.ndarray] = []
    upscaler_of(lambda x: seen.append(x) or x).upscale(np.array([[0, 255] * 8] * 16, np.uint8))
    (x,) = seen
    assert (x.shape, x.min(), x.max()) == ((1, 3, 32, 32), -1, 1)


def test_seams_are_blended_when_tiles_disagree() -> None:
    # Each tile gets its own brightness: with overlap, no step at a border is left.
    levels = iter(np.linspace(-0.5, 0.5, 16))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 52, 3)).astype(np.uint8)
    output = upscaler_of(lambda x: np.full_like(x, next(levels))).upscale(pixels, overlap_px=8)
    assert output[5, 0, 0] != output[5, -1, 0]
    assert np.abs(np.diff(output[5, :, 0].astype(int))).max() <= 2


def test_timings_cover_the_whole(photo: np.ndarray) -> None:
    result = upscaler_of().upscale_with_timings(photo, color_fix="wavelet")
    assert (tuple(result.stages_ms), result.tiles) == (STAGES, 30)
    assert all(value > 0 for value in result.stages_ms.values())
    assert 0.5 * result.total_ms < sum(result.stages_ms.values()) <= result.total_ms


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (0, "flat")])
def test_an_output_that_is_no_picture_is_an_error(photo: np.ndarray, value: float, words: str) -> None:
    def spoil(x: np.ndarray) -> np.ndarray:
        x = x.copy() if value else np.zeros_like(x)
        x[0, 1, 3, 3] = value
        return x

    with pytest.raises(VerificationError, match=words):
        upscaler_of(spoil).upscale(photo)


def test_a_flat_output_of_a_flat_input_is_none() -> None:
    flat = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(upscaler_of().upscale(flat), np.full((40, 40, 3), 77))


@pytest.mark.parametrize("picture", [np.zeros((0, 4, 3), np.uint8), Image.new("CMYK", (4, 4))])
def test_other_pictures_are_refused(picture: object) -> None:
    with pytest.raises(ImageError):
        upscaler_of().upscale(picture)


@pytest.mark.parametrize("options", [{"color_fix": "sepia"}, {"overlap_px": 16}, {"overlap_px": -1}])
def test_other_options_are_refused(photo: np.ndarray, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        upscaler_of().upscale(photo, **options)


def test_networks_of_another_tile_size_are_refused() -> None:
    with pytest.raises(UsageError, match="encoder input"):
        Upscaler(Backend([FunctionNetwork()] * 3), 24, 4, 2, resize_filter="bicubic", color_fix="none")


def test_a_half_precision_network_gets_its_dtype(photo: np.ndarray) -> None:
    upscaler = upscaler_of()
    upscaler.networks[2].output = FunctionNetwork(dtype="float16").output
    assert np.abs(upscaler.upscale(photo).astype(int) - bicubic(photo)).max() <= 1


def test_many_pictures_of_any_kind_one_after_another(photo: np.ndarray) -> None:
    pictures = [photo, Image.fromarray(photo[:20]), photo[..., 0], photo.astype(np.uint16) * 257, photo[:, :9]]
    upscaler = upscaler_of()
    for picture, result in zip(pictures, upscaler.upscale_many(iter(pictures), color_fix="wavelet"), strict=True):
        alone = upscaler.upscale(picture, color_fix="wavelet")
        assert type(result) is type(alone)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(alone))


def test_a_bad_frame_ends_the_many_at_its_turn(photo: np.ndarray) -> None:
    made = upscaler_of().upscale_many([photo, np.zeros((4, 4, 4), np.uint8), photo])
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

    for frame, made in zip(frames, upscaler_of().upscale_many(decoded()), strict=True):
        np.testing.assert_array_equal(np.asarray(made), bicubic(frame))


class RepeatsPixels(FunctionNetwork):
    """(1, 3, 16, 16) -> (1, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.repeat(2, axis=2).repeat(2, axis=3), 32)
        self.input = TensorInfo("x", (1, 3, 16, 16), "float32")


def direct_upscaler(color_fix: str = "none") -> Upscaler:
    """Of a network that takes the low resolution itself."""
    backend = Backend([RepeatsPixels()], names=("decoder",))
    return Upscaler(backend, 16, 4, 2, resize_filter="box", color_fix=color_fix)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (16, 16), (39, 53)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_networks_that_take_the_pixels_themselves(height: int, width: int, dtype: type, color_fix: str) -> None:
    """Nothing is enlarged first; and a colour fix leaves a picture that repeats each pixel as it is."""
    rng = np.random.default_rng(0)
    for shape in ((height, width, 3), (height, width)):
        pixels = rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
        upscaler = direct_upscaler(color_fix)
        result = np.asarray(upscaler.upscale(pixels)).astype(int)
        expected = pixels.repeat(2, axis=0).repeat(2, axis=1).astype(int)
        assert np.abs(result - expected).max() <= (2 if len(shape) == 2 or color_fix == "wavelet" else 1)


def test_adain_gives_the_low_resolution_s_own_statistics() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(90, 166, (40, 56, 3)).astype(np.uint8)

    class OtherColours(RepeatsPixels):
        def run(self, x: np.ndarray) -> np.ndarray:
            return super().run(x) * np.float32(0.5) + np.float32(0.3)

    upscaler = Upscaler(
        Backend([OtherColours()], names=("decoder",)), 16, 4, 2, resize_filter="box", color_fix="adain"
    )
    result = np.asarray(upscaler.upscale(pixels)).astype(float)
    for statistic in (np.mean, np.std):
        np.testing.assert_allclose(statistic(result, axis=(0, 1)), statistic(pixels, axis=(0, 1)), rtol=2e-3)
