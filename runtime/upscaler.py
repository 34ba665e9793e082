"""Any picture through static networks: enlarge, tile, run, blend, fix colours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError
from intsr.memory import resident_bytes
from intsr.runtime.backends.protocol import Backend, Network
from intsr.runtime.color_fix import ColorFix, open_color_fix
from intsr.runtime.pictures.python_types import copy_of, picture_like, pixels_from_picture
from intsr.runtime.tiles.blend import Band, FinishedBand, TiledPicture, TileProgress, blended_bands, finished_rows
from intsr.runtime.tiles.enlarge import Enlarger
from intsr.runtime.tiles.grid import TilePlan, plan_tiles
from intsr.runtime.tiles.growth import check_growth, grown_size, resized, shrunk
from intsr.runtime.tiles.memory import TileMemory
from intsr.runtime.tiles.overlap import overlapped
from intsr.runtime.tiles.stage_clock import STAGES, StageClock
from intsr.runtime.turns import TakesTurns, in_turns

if TYPE_CHECKING:
    from intsr.runtime.pictures.python_types import Picture

__all__ = ["STAGES", "UpscaleResult", "Upscaler", "Work", "pixels_from_picture"]


@dataclass(frozen=True, slots=True)
class UpscaleResult:
    """An enlarged picture, of the type that was put in, and the time that it took. tiles: how many ran."""

    image: Picture
    # Wall time by stage of `STAGES`; of a GPU's networks, the GPU's own time.
    stages_ms: dict[str, float]
    total_ms: float
    tiles: int
    # Copies to and from a GPU; None where there are none.
    transfers_ms: float | None = None
    # Whether the picture was on a GPU from its pixels to its finished rows, and all stages are the GPU's time; else
    # copies run beside the networks.
    on_device: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One picture on its way, in two halves that two threads may share: `bands`, then `finish`."""

    upscaler: Upscaler
    # Of the pixels that go through the networks, which are more than the picture's where that is too small.
    enlarger: Enlarger
    # Height and width of the result.
    size: tuple[int, int]
    plan: TilePlan
    color_fix: str
    fix: ColorFix
    clock: StageClock
    tile_progress: TileProgress | None = None
    memory: TileMemory | None = None

    @property
    def pixels(self) -> Array:
        return self.enlarger.pixels

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(H f, W f, 3) or (H f, W f)."""
        return (*self.size, *self.pixels.shape[2:])

    @property
    def tiled(self) -> TiledPicture:
        takes_pixels = self.upscaler.takes_pixels
        return TiledPicture(self.enlarger, self.plan, self.clock, self.tile_progress, takes_pixels)

    @property
    def tiles(self) -> int:
        return len(self.plan.tops) * len(self.plan.lefts)

    def bands(self) -> Generator[Band | FinishedBand]:
        """Yield what the networks make of it, blended, or finished by a device. Raises what they raise.

        Take them at once and in one thread: until its end the engine is this thread's.
        """
        with self.upscaler.turn():
            yield from self._bands()

    def _bands(self) -> Generator[Band | FinishedBand]:
        pipeline = self.upscaler.backend.picture_pipeline
        if pipeline is not None:
            made = pipeline.bands(self.enlarger, self.plan, self.color_fix, self.clock, self.tile_progress)
            if made is not None:
                self.clock.on_device = True
                yield from made
                return

        def run_tiles(inputs: Iterator[Array]) -> Generator[Array]:
            return self.upscaler.run_tiles(inputs, self.clock)

        tiled = self.tiled
        if self.memory is not None:
            tiled = replace(tiled, memory=self.memory, known=self.memory.recall(self.pixels, self.plan))
        yield from blended_bands(tiled, run_tiles)

    def finish(self, bands: Iterable[Band | FinishedBand]) -> Iterator[Array]:
        """Yield rows (h, W f, 3) or (h, W f), in the input's dtype. Raises VerificationError."""
        with closing(self.fix):
            rows = finished_rows(bands, self.pixels, self.fix, self.clock)
            if self.size == self.enlarger.size:
                yield from rows
            else:
                yield shrunk(rows, self.size, self.upscaler.resize_filter)

    def rows(self) -> Iterator[Array]:
        """Yield the rows, both halves in this thread: its is the engine for each band, and anybody's in between."""
        with closing(in_turns(self._bands(), self.upscaler.turn)) as bands:
            yield from self.finish(bands)

    def whole(self, rows: Iterable[Array]) -> Array:
        """Return all rows in one array of `output_shape`."""
        result, top = np.empty(self.output_shape, self.pixels.dtype), 0
        for part in rows:
            result[top : top + len(part)] = part
            top += len(part)
        return result


class Upscaler(TakesTurns):
    """An engine's networks with the tiling and colour fix around them; close it, or use it as a context manager.

    Several threads may use one: their calls take turns, a picture each, of `upscale_rows` a band each. Only
    `backend`, and what `networks` and `network` give, are for one thread at a time.

    backend: networks for a `tile_px` low-resolution tile. overlap_px: default overlap of neighbouring tiles,
    low-resolution pixels. color_fix: default of `wavelet`, `adain`, `none`. min_side_px: of the enlarged picture;
    smaller ones are enlarged further, and made smaller again. synthetic: of random weights. where: for errors.
    """

    def __init__(
        self,
        backend: Backend,
        tile_px: int,
        overlap_px: int,
        upscale_factor: int,
        *,
        resize_filter: str,
        color_fix: str,
        min_side_px: int = 0,
        synthetic: bool = False,
        where: object = "engine",
    ) -> None:
        super().__init__(where)
        self.backend, self.networks, self.synthetic = backend, backend.networks, synthetic
        self.tile_px, self.overlap_px, self.upscale_factor = tile_px, overlap_px, upscale_factor
        self.resize_filter, self.color_fix, self.min_side_px = resize_filter, color_fix, min_side_px
        side_px = tile_px * upscale_factor
        first, last = backend.networks[0].input, backend.networks[-1].output
        # Whether the first network takes the low resolution as it is; else enlarged.
        self.takes_pixels = first.shape[2:] == (tile_px, tile_px) != (side_px, side_px)
        ends = ("input", first, tile_px if self.takes_pixels else side_px), ("output", last, side_px)
        for name, (end, info, side) in zip((backend.names[0], backend.names[-1]), ends, strict=True):
            if info.shape != (first.shape[0], 3, side, side):
                expected = f"(N, 3, {side}, {side}) for {tile_px} px tiles"
                raise UsageError(f"{name} {end}", f"shape {info.shape}", expected)
        # What an inference is expected to take before one has run, bytes; 0 where nobody knows.
        self.expected_bytes = 0
        self.count_opened_memory()

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """The sides of the tiles that there are networks for, pixels, the largest first."""
        return (self.tile_px,)

    def count_opened_memory(self) -> None:
        """Take what is resident now for what the open networks take. Before the first inference."""
        self._opened_bytes = resident_bytes()

    @property
    def network_names(self) -> tuple[str, ...]:
        """Names of the networks, in the order in which they run."""
        return self.backend.names

    def resident_bytes_at(self, tile_px: int) -> int:
        """Return what this process takes with the engine at work on such tiles: as measured in the first inference,
        before that `expected_bytes`.
        """
        measured = self.backend.activation_bytes
        at_work = self.expected_bytes if measured is None else measured
        return self._opened_bytes + round(at_work * (tile_px / self.tile_px) ** 2)

    def warm_up(self) -> None:
        """Run one tile, where none has run: libraries take much of their memory in the first."""
        if self.backend.activation_bytes is None:
            self.run_pipeline(np.zeros(self.networks[0].input.shape, np.float32))

    def network(self, name: str) -> Network:
        """Return the network of that name: `encoder`, `unet` or `decoder`, of those that there are."""
        return self.backend.network(name)

    def run_pipeline(self, x: Array) -> Array:
        """Run as many tiles as the engine takes at once, mostly 1: (N, 3, T f, T f) in [-1, 1] -> (N, 3, T f, T f),
        nominally in [-1, 1], not clamped. Where it takes pixels: (N, 3, T, T) -> (N, 3, T f, T f).
        """
        with self.turn():
            return self.backend.run(x)

    def upscale(self, image: Picture, color_fix: str | None = None, overlap_px: int | None = None) -> Picture:
        """Return the picture, `upscale_factor` times as large, of the same type and dtype.

        image: (H, W, 3) RGB or (H, W) grey, uint8 or uint16, or a Pillow image of mode RGB, L or I;16. Any size.
        Pixels are taken as they lie there: where a photograph's EXIF says that it is turned, put it through
        `PIL.ImageOps.exif_transpose` first.
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
        """As `upscale`. tile_progress: wraps the iteration over tiles, to show it. Times begin with its turn."""
        with self.turn():
            start = time.perf_counter()
            work = self.start(pixels_from_picture(image), color_fix, overlap_px, tile_progress)
            result = work.whole(work.rows())
            total_ms = (time.perf_counter() - start) * 1e3
        clock, picture = work.clock, picture_like(image, result)
        return UpscaleResult(
            picture, clock.stages_ms, total_ms, work.tiles, clock.transfers_ms, on_device=clock.on_device
        )

    def upscale_rows(
        self, image: Picture, color_fix: str | None = None, overlap_px: int | None = None
    ) -> Iterator[Array]:
        """As `upscale`, in bands from top to bottom, for pictures whose enlargement should not be held whole.

        Yields (h, W f, 3) or (h, W f) of the picture's dtype, h as it comes.
        """
        yield from self.start(pixels_from_picture(image), color_fix, overlap_px).rows()

    def upscale_many(
        self, images: Iterable[Picture], color_fix: str | None = None, overlap_px: int | None = None
    ) -> Iterator[Picture]:
        """As `upscale`, one picture after another, of any sizes: frames of a video, for instance.

        images: taken two ahead of what is given out: the colours of one are finished beside the networks of the next.
        Each is copied when it is taken: the caller may use its buffer again for the next. Raises, at its turn, what
        `upscale` raises.
        """

        def prepare(image: Picture) -> Work:
            return self.start(pixels_from_picture(image), color_fix, overlap_px)

        def finish(work: Work, bands: Iterable[Band | FinishedBand]) -> Array:
            return work.whole(work.finish(bands))

        # Here and not in `prepare`, which runs beside the iterator of the caller.
        copies = map(copy_of, images)
        for image, result in overlapped(copies, prepare, Work.bands, finish):
            if isinstance(result, Exception):
                raise result
            yield picture_like(image, result)

    def start(
        self,
        pixels: Array,
        color_fix: str | None = None,
        overlap_px: int | None = None,
        tile_progress: TileProgress | None = None,
        spill_folder: Path | None = None,
        *,
        memory: TileMemory | None = None,
    ) -> Work:
        """Check everything and compute nothing yet. pixels: as `pixels_from_picture` gives them. spill_folder: where
        `adain` keeps rows that are too many for memory. memory: of a film, whose frames follow each other in it; a
        GPU that keeps whole pictures does without. Raises UsageError.
        """
        self.check_usable()
        overlap_px = self.overlap_px if overlap_px is None else overlap_px
        height, width = pixels.shape[:2]
        check_growth(height, width, self.upscale_factor, self.min_side_px, "picture")
        grown = grown_size(height, width, self.upscale_factor, self.min_side_px)
        if grown != (height, width):
            pixels = resized(pixels, grown, self.resize_filter)
        plan = plan_tiles(*grown, self.tile_px, overlap_px)
        color_fix = self.color_fix if color_fix is None else color_fix
        fix = open_color_fix(color_fix, spill_folder)
        enlarger = Enlarger(pixels, self.upscale_factor, self.resize_filter)
        size = height * self.upscale_factor, width * self.upscale_factor
        return Work(self, enlarger, size, plan, color_fix, fix, StageClock(), tile_progress, memory)

    def run_tiles(self, inputs: Iterator[Array], clock: StageClock) -> Generator[Array]:
        """Yield (3, T f, T f) for each input, in order; as many run at once as the engine takes."""
        pipeline = self.backend.tile_pipeline
        counts: deque[int] = deque()
        batches = _batches(inputs, self.networks[0].input.shape[0], counts)
        if pipeline is not None:
            outputs = pipeline.run_batches(batches, clock.add)
        else:
            outputs = (self.backend.run(batch, clock.add) for batch in batches)
        with closing(outputs):
            for output in outputs:
                yield from output[: counts.popleft()]

    def _free(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batches(inputs: Iterator[Array], size: int, counts: deque[int]) -> Iterator[Array]:
    """Yield (size, 3, H, W) of (3, H, W), the last filled up with zeros. counts: gets how many of each are inputs."""
    while batch := list(islice(inputs, size)):
        counts.append(len(batch))
        yield np.stack(batch + [np.zeros_like(batch[0])] * (size - len(batch)))
