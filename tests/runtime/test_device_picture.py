"""Whole pictures on a simulated GPU, the kernels' own sources emulated: against the host's path, memory, failures.

The networks are the identity in float16. `none` and `wavelet` must agree to the last bit; `adain` sums its statistics
in another order: one level, for at most 1 % of the numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FUNCTIONS
from PIL import Image

from intsr.errors import BuildError, EngineMismatchError, UsageError, VerificationError
from intsr.kernels.devices import emulated as emulate
from intsr.runtime.backends.tensorrt import picture_pipeline as device_picture
from intsr.runtime.backends.tensorrt.picture_launches import PictureShape
from intsr.runtime.batch.files import upscale_files
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.tiles.grid import plan_tiles
from intsr.runtime.upscaler import STAGES, UpscaleResult
from intsr.types import COLOR_FIXES

try:
    emulate.find_cpp_compiler()
    NO_COMPILER = ""
except BuildError as found:
    NO_COMPILER = str(found)
# The CUDA sources, run on the CPU: `make test-slow`.
pytestmark = [pytest.mark.kernels, pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "-")]

OpenEngine = Callable[..., Engine]


@pytest.fixture
def opened(machine) -> Iterator[OpenEngine]:
    """Opens an engine whose pictures stay on the device; warnings are errors. In the end nothing may be left."""
    machine.build_kernels()
    machine.gpu.total_bytes = 1 << 27
    engines = []

    def open_(target: str = "tensorrt", batch: int = 1, backend: str = "cuda-python", **changes: object) -> Engine:
        path = machine.engine(target, batch, "float16", **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engines.append(open_engine(path, cuda_backend=backend))
        return engines[-1]

    yield open_
    assert machine.gpu.idle()
    for engine in engines:
        engine.close()
    engines.clear()
    machine.assert_nothing_is_left()


def on_host(engine: Engine, image: np.ndarray, *options: object) -> np.ndarray:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(engine.backend, "picture_pipeline", None)
        result = engine.upscale_with_timings(image, *options)
    assert not result.on_device
    return np.asarray(result.image)


def agrees_with_host(result: UpscaleResult, engine: Engine, image: np.ndarray, *options: object) -> bool:
    got, expected = np.asarray(result.image), on_host(engine, image, *options)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    difference = np.abs(got.astype(int) - expected)
    most, share = (1, 0.01) if "adain" in options else (0, 0)
    return difference.max() <= most and np.count_nonzero(difference) <= share * difference.size


def strips_of(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(PictureShape, "strip_rows", rows)


def random_pixels(height: int, width: int, grey: bool = False) -> np.ndarray:
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(height * 100 + width).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def photo(photo: np.ndarray) -> np.ndarray:
    """(30, 42, 3): twelve tiles."""
    return np.ascontiguousarray(photo[:30, :42])


@pytest.fixture
def small() -> np.ndarray:
    """Six tiles."""
    return random_pixels(20, 38)


@pytest.mark.parametrize(
    ("height", "width", "overlap_px", "grey", "color_fix"),
    # One tile and all of it; one that is padded; a single pixel; many tiles, one beside and one on the other.
    [
        (16, 16, 4, True, "wavelet"),
        (5, 3, 4, False, "wavelet"),
        (1, 1, 0, True, "adain"),
        (39, 53, 4, False, "adain"),
        (39, 53, 4, False, "wavelet"),
        (39, 53, 4, True, "none"),
        (37, 16, 0, False, "none"),
    ],
)
def test_the_device_gives_what_the_host_gives(
    opened: OpenEngine, height: int, width: int, overlap_px: int, grey: bool, color_fix: str
) -> None:
    engine, pixels = opened(), random_pixels(height, width, grey)
    result = engine.upscale_with_timings(pixels, color_fix, overlap_px)
    assert result.on_device and agrees_with_host(result, engine, pixels, color_fix, overlap_px)


@pytest.mark.parametrize(("color_fix", "grey"), [("adain", False), ("wavelet", False), ("none", True)])
def test_networks_that_take_the_pixels_themselves(opened: OpenEngine, color_fix: str, grey: bool) -> None:
    engine, pixels = opened(direct=True, resize_filter="box"), random_pixels(39, 53, grey)
    result = engine.upscale_with_timings(pixels, color_fix)
    assert result.on_device and engine.network_names == ("unet", "decoder") and engine.takes_pixels
    assert agrees_with_host(result, engine, pixels, color_fix)
    if color_fix == "none":
        enlarged = pixels.repeat(2, axis=0).repeat(2, axis=1).astype(int)
        assert np.abs(np.asarray(result.image) - enlarged).max() <= 1


@pytest.mark.parametrize(
    ("target", "options"),
    [("tensorrt-rtx", {"resize_filter": "lanczos"}), ("tensorrt", {"backend": "pycuda"})],
)
def test_a_photograph_with_every_backend(opened: OpenEngine, photo: np.ndarray, target: str, options) -> None:
    engine = opened(target, **options)
    result = engine.upscale_with_timings(Image.fromarray(photo), "wavelet")
    assert result.on_device and result.tiles == 12
    assert agrees_with_host(result, engine, photo, "wavelet")


def test_batches_the_last_filled_up(opened: OpenEngine, machine, photo: np.ndarray) -> None:
    engine = opened(batch=4)
    result = engine.upscale_with_timings(photo)
    assert result.on_device and sum(name.endswith("decoder") for name in machine.gpu.log) == 3
    assert agrees_with_host(result, engine, photo)


def test_values_outside_the_range_are_clipped_before_the_colours(
    opened: OpenEngine, small: np.ndarray, monkeypatch: pytest.MonkeyPatch, machine
) -> None:
    change_decoder(machine, monkeypatch, lambda image: image * np.float16(1.5))
    engine = opened()
    for color_fix in COLOR_FIXES:
        assert agrees_with_host(engine.upscale_with_timings(small, color_fix), engine, small, color_fix)


# The ways in


def test_rows_many_and_files_go_the_same_way(
    opened: OpenEngine, machine, small: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    pictures = [small, small[::-1].copy(), random_pixels(9, 20, grey=True), small]
    expected = [on_host(engine, picture) for picture in pictures]
    # The host's path would fail from here on.
    monkeypatch.setattr(engine, "run_tiles", None)
    for got, wanted in zip(engine.upscale_many(pictures), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    strips_of(monkeypatch, 7)
    rows = list(engine.upscale_rows(random_pixels(20, 20)))
    assert [len(part) for part in rows] == [7, 7, 7, 7, 7, 5]
    np.testing.assert_array_equal(np.concatenate(rows), engine.upscale(random_pixels(20, 20)))

    alpha = np.arange(small.shape[0] * small.shape[1], dtype=np.uint8).reshape(small.shape[:2])
    Image.fromarray(np.dstack([small, alpha])).save(tmp_path / "in.png")
    (report,) = upscale_files(engine, [Job(tmp_path / "in.png", tmp_path / "out.png")], FileOptions())
    assert report.status == "ok", report.error
    written = np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(written[..., :3], expected[0])
    enlarged = Image.fromarray(alpha).resize((76, 40), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(written[..., 3], np.asarray(enlarged))


def test_one_copy_up_and_one_down(opened: OpenEngine, machine, photo: np.ndarray) -> None:
    engine = opened()
    engine.upscale(photo)
    before, allocated = len(machine.gpu.log), machine.gpu.calls["cuMemAlloc"]
    engine.upscale(photo[::-1])
    log = machine.gpu.log[before:]
    # Down: the extremes, and the picture.
    assert (log.count("up"), log.count("down"), log.count("clear")) == (1, 2, 1)
    assert [log.count(name) for name in ("resize_pixels", "extract_tile", "accumulate_tile")] == [1, 12, 12]
    assert machine.gpu.calls["cuMemAlloc"] == allocated, "the buffers of one size are made once"


def test_stages_are_timed_by_the_device(opened: OpenEngine, photo: np.ndarray) -> None:
    result = opened().upscale_with_timings(photo, "adain")
    assert set(result.stages_ms) == set(STAGES)
    # A step of the simulation takes one millisecond; recording an event is one, too.
    assert result.stages_ms["resize"] >= 13 and result.stages_ms["unet"] >= 12
    assert result.stages_ms["blend"] >= 15 and result.stages_ms["color_fix"] >= 3
    assert result.transfers_ms is not None and result.transfers_ms >= 3


def test_graphs_are_those_of_the_ends_of_each_way(opened: OpenEngine, machine, photo: np.ndarray) -> None:
    engine = opened()
    engine.upscale(photo)
    assert machine.gpu.calls["cuStreamBeginCapture"] == 3
    on_host(engine, photo)
    assert machine.gpu.calls["cuStreamBeginCapture"] == 7, "the UNet's buffers are everybody's, so is its graph"


def test_progress_is_shown_by_tile(opened: OpenEngine, photo: np.ndarray) -> None:
    seen = []

    def watched(tiles):
        for tile in tiles:
            seen.append(tile)
            yield tile

    assert opened().upscale_with_timings(photo, tile_progress=watched).tiles == len(seen) == 12


# What has to go through host memory


def test_sixteen_bits_go_through_the_host(opened: OpenEngine, photo: np.ndarray) -> None:
    result = opened().upscale_with_timings(photo.astype(np.uint16) * 257)
    assert not result.on_device and np.asarray(result.image).dtype == np.uint16


def test_a_picture_too_large_for_the_device_goes_through_the_host(
    opened: OpenEngine, machine, photo: np.ndarray
) -> None:
    engine = opened()
    small = random_pixels(16, 16)
    assert engine.upscale_with_timings(small, "wavelet").on_device
    held = sum(map(len, machine.gpu.device.values()))
    needed = PictureShape(plan_tiles(30, 42, 16, 4), 2, "bicubic", "wavelet", False).device_bytes()
    engine_bytes = held - _bytes_of_pictures(machine, engine)
    for missing, on_device in ((1, False), (0, True)):
        machine.gpu.total_bytes = engine_bytes + needed + device_picture._SPARE_BYTES - missing
        result = engine.upscale_with_timings(photo, "wavelet")
        assert result.on_device == on_device and agrees_with_host(result, engine, photo, "wavelet")


def _bytes_of_pictures(machine, engine: Engine) -> int:
    device = engine.backend.picture_pipeline._device  # type: ignore[attr-defined]
    return sum(len(machine.gpu.device[address]) for address in device._addresses)


@pytest.mark.parametrize(("color_fix", "grey"), [("none", True), ("wavelet", False), ("adain", False)])
def test_memory_is_known_beforehand(opened: OpenEngine, machine, color_fix: str, grey: bool) -> None:
    engine = opened()
    shape = PictureShape(plan_tiles(90, 70, 16, 4), 2, "bicubic", color_fix, grey)
    assert engine.backend.picture_pipeline._prepared(shape) is not None
    taken = _bytes_of_pictures(machine, engine)
    assert taken <= shape.device_bytes() <= taken + 4 * 16 * sum(shape.size) + (1 << 16)


@pytest.mark.parametrize("spare", (0, 60_000, 120_000))
def test_memory_that_is_gone_all_the_same_is_no_failure(
    opened: OpenEngine, machine, monkeypatch: pytest.MonkeyPatch, small: np.ndarray, spare: int
) -> None:
    engine = opened()
    before = set(machine.gpu.device), set(machine.gpu.host_memory)
    monkeypatch.setattr(PictureShape, "device_bytes", lambda shape: 0)
    monkeypatch.setattr(device_picture, "_SPARE_BYTES", 0)
    machine.gpu.total_bytes = sum(map(len, machine.gpu.device.values())) + spare
    result = engine.upscale_with_timings(small, "wavelet")
    assert not result.on_device and agrees_with_host(result, engine, small, "wavelet")
    assert (set(machine.gpu.device), set(machine.gpu.host_memory)) == before


def test_two_pictures_at_once(opened: OpenEngine, small: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first has the device until its rows are taken.
    engine, other = opened(), random_pixels(20, 30)
    expected = [on_host(engine, picture) for picture in (small, other)]
    strips_of(monkeypatch, 20)
    first = engine.upscale_rows(small)
    rows = [next(first)]
    result = engine.upscale_with_timings(other)
    assert not result.on_device
    np.testing.assert_array_equal(np.asarray(result.image), expected[1])
    np.testing.assert_array_equal(np.concatenate(rows + list(first)), expected[0])
    assert engine.upscale_with_timings(other).on_device


# What is no picture


def change_decoder(machine, monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Before the engine's first run: graphs keep what they captured."""
    decoder = FUNCTIONS["decoder"]
    monkeypatch.setitem(FUNCTIONS, "decoder", lambda x: change(decoder(x)))


ONE = np.zeros((1, 3, 32, 32), bool)
ONE[0, 1, 7, 9] = True


@pytest.mark.parametrize(
    ("color_fix", "change", "problem"),
    [
        ("none", lambda image: np.where(ONE, np.nan, image), "NaN or infinite"),
        ("wavelet", lambda image: np.where(ONE, -np.inf, image), "NaN or infinite"),
        # With the input's colours put on it, it would no longer look flat.
        ("wavelet", lambda image: np.full_like(image, 0.25), "one flat colour"),
        ("none", lambda image: np.full_like(image, -3), "one flat colour"),
    ],
)
def test_an_output_that_is_no_picture(
    opened: OpenEngine, machine, monkeypatch: pytest.MonkeyPatch, small: np.ndarray, color_fix, change, problem
) -> None:
    engine = opened()
    held = set(machine.gpu.device)
    broken = [True]
    change_decoder(machine, monkeypatch, lambda image: change(image) if broken else image)
    rows = engine.upscale_rows(small, color_fix)
    with pytest.raises(VerificationError, match=problem):
        next(rows)
    with pytest.raises(VerificationError, match=problem):
        on_host(engine, small, color_fix)
    assert set(machine.gpu.device) == held and machine.gpu.idle()
    broken.clear()
    assert engine.upscale_with_timings(small, color_fix).on_device


def test_a_flat_input_may_give_a_flat_output(opened: OpenEngine) -> None:
    pixels = np.full((20, 20, 3), 77, np.uint8)
    result = opened().upscale_with_timings(pixels)
    assert result.on_device and set(np.unique(result.image)) == {77}


# Memory, and failures on the way


def test_buffers_of_another_size_replace_the_old_ones(opened: OpenEngine, machine, small: np.ndarray) -> None:
    engine = opened()
    sizes = []
    for pixels in (small, random_pixels(16, 16), small):
        engine.upscale(pixels)
        sizes.append(sum(map(len, machine.gpu.device.values())))
        assert len(machine.gpu.host_memory) == 5, "four of the tiles' slots, one for rows of the picture"
    assert sizes[0] == sizes[2] > sizes[1]


@pytest.mark.parametrize(
    "name", ["cuMemcpyHtoDAsync", "cuMemsetD8Async", "cuEventSynchronize", "cuGraphLaunch", "cuLaunchKernel"]
)
@pytest.mark.parametrize("again", [False, True])
def test_cuda_fails_while_running(opened: OpenEngine, machine, small: np.ndarray, name: str, again: bool) -> None:
    engine = opened()
    engine.upscale(random_pixels(16, 32))
    engine.backend.picture_pipeline._release()
    held = set(machine.gpu.device), set(machine.gpu.host_memory)
    if again:
        engine.upscale(small)
    machine.gpu.fail[name] = "CUDA_ERROR_LAUNCH_FAILED"
    with pytest.raises(EngineMismatchError, match=f"{name} reports CUDA_ERROR_LAUNCH_FAILED"):
        engine.upscale(small)
    machine.gpu.fail.clear()
    assert machine.gpu.idle(), "nothing may still be using the buffers"
    assert (set(machine.gpu.device), set(machine.gpu.host_memory)) == held
    assert engine.upscale_with_timings(small).on_device


def test_a_caller_that_wants_no_more(opened: OpenEngine, machine, small: np.ndarray, monkeypatch) -> None:
    engine = opened()
    held = set(machine.gpu.device)
    strips_of(monkeypatch, 20)
    rows = engine.upscale_rows(small)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert machine.gpu.idle() and set(machine.gpu.device) == held
    assert engine.upscale_with_timings(small).on_device


def test_closing_while_rows_are_taken(opened: OpenEngine, machine, small: np.ndarray, monkeypatch) -> None:
    engine = opened()
    strips_of(monkeypatch, 20)
    rows = engine.upscale_rows(small)
    next(rows)
    engine.close()
    machine.assert_nothing_is_left()
    with pytest.raises(UsageError, match="is closed"):
        next(rows)
