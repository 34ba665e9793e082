"""Any picture through three static networks: enlarge, tile, run, blend, fix colours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from intsr.errors import ImageError, UsageError, VerificationError
from intsr.runtime.color_fix import fix_colors
from intsr.runtime.networks import Array, Network, TilePipeline
from intsr.runtime.resize import enlarge, unit_channels, unit_part
from intsr.runtime.tiling import Tile, TilePlan, blend_weights, pad_to_square, plan_tiles
from intsr.types import COLOR_FIXES, NETWORKS

if TYPE_CHECKING:
    from PIL import Image

    Picture: TypeAlias = Array | Image.Image

TileProgress: TypeAlias = Callable[[Sequence[Tile]], Iterable[Tile]]

STAGES = ("resize", *NETWORKS, "blend", "color_fix")
TRANSFERS = "transfers"
# Rec. 601, as Pillow's own RGB to L.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# An input that spans at least this much of its range is not flat.
_FLAT_RANGE = 8 / 255
# Less than half a step of 8 bits.
_SAME_COLOUR = 0.4 / 255


@dataclass(frozen=True, slots=True)
class UpscaleResult:
    """image: of the type that was put in. stages_ms: wall time by stage of `STAGES`; of a GPU's networks, its own
    time. tiles: how many ran. transfers_ms: copies to and from a GPU, beside its work; None where there are none.
    """

    image: Picture
    stages_ms: dict[str, float]
    total_ms: float
    tiles: int
    transfers_ms: float | None = None


@dataclass(slots=True)
class _StageClock:
    stages_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    transfers_ms: float | None = None

    def add(self, name: str, ms: float) -> None:
        """What a device measured itself: of a stage, or of `transfers`."""
        if name == TRANSFERS:
            self.transfers_ms = (self.transfers_ms or 0.0) + ms
        else:
            self.stages_ms[name] += ms

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages_ms[name] += (time.perf_counter() - start) * 1e3


class Upscaler:
    """Three networks with the tiling and colour fix around them; close it, or use it as a context manager.

    networks: encoder, unet and decoder, each for a `tile_px` low-resolution tile. overlap_px: default overlap of
    neighbouring tiles, low-resolution pixels. color_fix: default of `wavelet`, `adain`, `none`. synthetic: of random
    weights.
    """

    def __init__(
        self,
        networks: tuple[Network, Network, Network],
        tile_px: int,
        overlap_px: int,
        upscale_factor: int,
        resize_filter: str,
        color_fix: str,
        synthetic: bool = False,
    ) -> None:
        self.networks, self.synthetic = networks, synthetic
        self.tile_px, self.overlap_px, self.upscale_factor = tile_px, overlap_px, upscale_factor
        self.resize_filter, self.color_fix = resize_filter, color_fix
        side_px = tile_px * upscale_factor
        for name, info in (("encoder input", networks[0].input), ("decoder output", networks[2].output)):
            if info.shape != (networks[0].input.shape[0], 3, side_px, side_px):
                raise UsageError(name, f"shape {info.shape}", f"(N, 3, {side_px}, {side_px}) for {tile_px} px tiles")

    def network(self, name: str) -> Network:
        """By name: `encoder`, `unet` or `decoder`."""
        return self.networks[NETWORKS.index(name)]

    def run_pipeline(self, x: Array) -> Array:
        """As many tiles as the engine takes at once, mostly 1: (N, 3, T f, T f) in [-1, 1] -> (N, 3, T f, T f),
        nominally in [-1, 1], not clamped.
        """
        for network in self.networks:
            x = network.run(x)
        return x

    def upscale(self, image: Picture, color_fix: str | None = None, overlap_px: int | None = None) -> Picture:
        """The picture, `upscale_factor` times as large, of the same type and dtype.

        image: (H, W, 3) RGB or (H, W) grey, uint8 or uint16, or a Pillow image of mode RGB, L or I;16. Any size.
        color_fix, overlap_px: None for the defaults. Raises ImageError, UsageError, VerificationError (an output
        that is not a picture: NaN, infinite, or flat although the input is not).
        """
        return self.upscale_with_timings(image, color_fix, overlap_px).image

    def upscale_with_timings(
        self,
        image: Picture,
        color_fix: str | None = None,
        overlap_px: int | None = None,
        tile_progress: TileProgress | None = None,
    ) -> UpscaleResult:
        """As `upscale`. tile_progress: wraps the iteration over tiles, to show it."""
        color_fix = self.color_fix if color_fix is None else color_fix
        overlap_px = self.overlap_px if overlap_px is None else overlap_px
        if color_fix not in COLOR_FIXES:
            raise UsageError("--color-fix", repr(color_fix), f"one of {', '.join(COLOR_FIXES)}")
        pixels = pixels_from_picture(image)
        start, clock = time.perf_counter(), _StageClock()
        plan = plan_tiles(pixels.shape[0], pixels.shape[1], self.tile_px, overlap_px)
        with clock.stage("resize"):
            enlarged = enlarge(pixels, self.upscale_factor, self.resize_filter)
        output = self._run_tiles(enlarged, plan, clock, tile_progress)
        _check_output(output, pixels)
        np.clip(output, 0, 1, out=output)
        with clock.stage("color_fix"):
            fix_colors(output, unit_channels(enlarged), color_fix)
        with clock.stage("blend"):
            result = _pixels_from_unit(output, pixels)
        total_ms = (time.perf_counter() - start) * 1e3
        return UpscaleResult(
            _picture_like(image, result), clock.stages_ms, total_ms, len(plan.tiles), clock.transfers_ms
        )

    def _run_tiles(
        self, enlarged: Array, plan: TilePlan, clock: _StageClock, tile_progress: TileProgress | None
    ) -> Array:
        """Blended output (3, H f, W f) float32, nominally in [0, 1]."""
        factor, side_px = self.upscale_factor, self.tile_px * self.upscale_factor
        height_px, width_px = enlarged.shape[:2]
        rows = blend_weights(tuple(top * factor for top in plan.tops), side_px, height_px)
        columns = blend_weights(tuple(left * factor for left in plan.lefts), side_px, width_px)
        output = np.zeros((3, height_px, width_px), np.float32)
        inputs = self._tile_inputs(enlarged, plan, clock)
        # Closed here, not by the garbage collector: after an error a device may still be at work for it.
        with closing(self._run_networks(inputs, clock)) as images:
            for tile in tile_progress(plan.tiles) if tile_progress else plan.tiles:
                top, left, height, width = (v * factor for v in (tile.top, tile.left, tile.height, tile.width))
                image = next(images)
                with clock.stage("blend"):
                    unit = image[:, :height, :width].astype(np.float32) * np.float32(0.5) + np.float32(0.5)
                    unit *= rows[tile.row][:, None]
                    unit *= columns[tile.column]
                    output[:, top : top + height, left : left + width] += unit
        return output

    def _tile_inputs(self, enlarged: Array, plan: TilePlan, clock: _StageClock) -> Iterator[Array]:
        """Every tile's (3, T f, T f) in [-1, 1]."""
        factor = self.upscale_factor
        for tile in plan.tiles:
            with clock.stage("resize"):
                top, left, height, width = (
                    value * factor for value in (tile.top, tile.left, tile.height, tile.width)
                )
                unit = unit_part(enlarged, top, left, height, width)
                x = pad_to_square(unit, self.tile_px * factor) * np.float32(2) - np.float32(1)
            yield x

    def _run_networks(self, inputs: Iterator[Array], clock: _StageClock) -> Generator[Array]:
        """(3, T f, T f) after (3, T f, T f), in order; as many at once as the engine takes."""
        pipeline: TilePipeline | None = getattr(self.networks[0], "pipeline", None)
        counts: deque[int] = deque()
        batches = _batches(inputs, self.networks[0].input.shape[0], counts)
        if pipeline is not None:
            outputs = pipeline.run_batches(batches, clock.add)
        else:
            outputs = (self._timed_pipeline(batch, clock) for batch in batches)
        with closing(outputs):
            for output in outputs:
                yield from output[: counts.popleft()]

    def _timed_pipeline(self, x: Array, clock: _StageClock) -> Array:
        for name, network in zip(NETWORKS, self.networks, strict=True):
            with clock.stage(name):
                x = network.run(x)
        return x

    def close(self) -> None:
        for network in self.networks:
            network.close()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batches(inputs: Iterator[Array], size: int, counts: deque[int]) -> Iterator[Array]:
    """(size, 3, H, W) of (3, H, W); the last is filled up with zeros. counts: gets how many of each are inputs."""
    while batch := list(islice(inputs, size)):
        counts.append(len(batch))
        yield np.stack(batch + [np.zeros_like(batch[0])] * (size - len(batch)))


def pixels_from_picture(image: Picture) -> Array:
    """(H, W) or (H, W, 3), uint8 or uint16. Raises ImageError for anything else."""
    if not isinstance(image, np.ndarray):
        if image.mode not in ("RGB", "L", "I;16"):
            raise ImageError("picture", f"mode {image.mode}", "RGB, L or I;16", 'convert it with .convert("RGB")')
        image = np.asarray(image)
    colour_axes = image.shape[2:]
    if image.ndim not in (2, 3) or colour_axes not in ((), (3,)) or 0 in image.shape:
        raise ImageError("picture", f"shape {image.shape}", "(H, W, 3) or (H, W), not empty")
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError("picture", f"dtype {image.dtype}", "uint8 or uint16")
    return image


def _check_output(output: Array, pixels: Array) -> None:
    """Raises VerificationError for what no picture file should be made of."""
    # NaN goes through max and min: no temporary of the picture's size is needed.
    high, low = output.max(axis=(1, 2)), output.min(axis=(1, 2))
    problem = ""
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        problem = "NaN or infinite values"
    elif int(np.ptp(pixels, axis=(0, 1)).max()) >= _FLAT_RANGE * np.iinfo(pixels.dtype).max:
        problem = "one flat colour" if float((high - low).max()) < _SAME_COLOUR else ""
    if problem:
        raise VerificationError("the engine's output", problem, "a picture", "compile the model again")


def _pixels_from_unit(output: Array, like: Array) -> Array:
    """(3, H, W) float32, overwritten -> (H, W, 3) or (H, W) as `like` is, in its dtype, rounded and clipped."""
    peak = np.float32(np.iinfo(like.dtype).max)
    if like.ndim == 2:
        output = np.tensordot(_LUMA, output, axes=1)[None]
    result = np.empty((*output.shape[1:], len(output)), like.dtype)
    for channel, values in enumerate(output):
        values *= peak
        np.rint(values, out=values)
        np.clip(values, 0, peak, out=values)
        result[..., channel] = values
    return result if like.ndim == 3 else result[..., 0]


def _picture_like(image: Picture, pixels: Array) -> Picture:
    if isinstance(image, np.ndarray):
        return pixels
    from PIL import Image

    return Image.fromarray(pixels)
