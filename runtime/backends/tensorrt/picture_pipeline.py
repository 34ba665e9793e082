"""A whole picture on the GPU: its pixels go up once, small, and its finished rows come down once.

Enlarging, tiles, networks, blending, colours and rounding are all in the compute stream, one after the other, so that
no buffer needs a guard; the host only waits now and then, lest it run too far ahead. What comes out has the bits of
the host's path (`bands`), but for `adain`, whose statistics are summed in another order.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import cycle, islice

import numpy as np

from intsr.arrays import Array
from intsr.errors import IntsrError, OutOfMemoryError
from intsr.runtime.backends.tensorrt.picture_device import KernelDevice, Laps, read_fatbins
from intsr.runtime.backends.tensorrt.picture_launches import PicturePlan, PictureShape, plan_whole_picture
from intsr.runtime.backends.tensorrt.session import Session, Stage, size_bytes_from_info
from intsr.runtime.tiles.blend import FinishedBand, OutputCheck, TileProgress
from intsr.runtime.tiles.enlarge import CHANNELS, Enlarger
from intsr.runtime.tiles.grid import Tile, TilePlan
from intsr.runtime.tiles.stage_clock import TRANSFERS, StageClock

# Tiles that the host is ahead of the device.
_TILES_AHEAD = 2
# Left free: allocations are rounded up to 2 MiB, and libraries take some in their first run.
_SPARE_BYTES = 48 << 20
_VECTOR_PX = 8


def open_device_picture(
    session: Session, stages: Sequence[Stage], addresses: Sequence[tuple[int, int]]
) -> DevicePicture | None:
    """addresses: of each network's input and output buffers. None, with a warning that says why, where pictures have
    to go through host memory. Raises OutOfMemoryError.
    """
    try:
        problem = _problem(stages)
        device = None if problem else KernelDevice(session, read_fatbins())
    except OutOfMemoryError:
        raise
    except IntsrError as error:
        device, problem = None, str(error)
    if device is None:
        # Slower, not wrong: no reason to stop, and one to say so.
        text = f"{session.where} enlarges and blends its pictures on the CPU, which costs some time: {problem}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None
    return DevicePicture(session, device, stages, addresses)


def _problem(stages: Sequence[Stage]) -> str:
    """Why the kernels cannot work with such networks, "" where they can."""
    ends = stages[0].input, stages[-1].output
    if any(info.dtype != "float16" for info in ends):
        return f"the networks take {ends[0].dtype} and give {ends[1].dtype}, the kernels float16"
    side = ends[0].shape[3]
    return f"tiles of {side} pixels are no multiple of {_VECTOR_PX}" if side % _VECTOR_PX else ""


class DevicePicture:
    """The `PicturePipeline` of TensorRT: one picture at a time. Buffers are kept for the next of the same size."""

    def __init__(
        self, session: Session, device: KernelDevice, stages: Sequence[Stage], addresses: Sequence[tuple[int, int]]
    ) -> None:
        self._session, self._device, self._stages = session, device, tuple(stages)
        self._addresses = tuple(addresses)
        self._ends = (stages[0].input, addresses[0][0]), (stages[-1].output, addresses[-1][1])
        self._begin_laps = Laps(session, (TRANSFERS, "resize", "blend"))
        names = ("resize", *(stage.name for stage in stages), "blend")
        self._tile_laps = [Laps(session, names) for _ in range(_TILES_AHEAD)]
        self._end_laps = Laps(session, ("blend", "color_fix", "blend", TRANSFERS))
        self._strip_laps = Laps(session, (TRANSFERS,))
        self._made: PicturePlan | None = None
        self._busy = False
        session.on_close(self._release)

    def bands(
        self,
        enlarger: Enlarger,
        plan: TilePlan,
        color_fix: str,
        clock: StageClock,
        tile_progress: TileProgress | None = None,
    ) -> Generator[FinishedBand] | None:
        """Run a picture as `PicturePipeline` says. Iterate at once: the first step gives it the device.

        Raises EngineMismatchError, OutOfMemoryError, VerificationError; nothing of the picture is on the device then.
        """
        self._session.enter()
        pixels = enlarger.pixels
        if self._busy or pixels.dtype != np.uint8:
            return None
        shape = PictureShape(plan, enlarger.upscale_factor, enlarger.resize_filter, color_fix, pixels.ndim == 2)
        made = self._prepared(shape)
        return None if made is None else self._run(made, pixels, clock, tile_progress)

    def _prepared(self, shape: PictureShape) -> PicturePlan | None:
        """None where it does not fit into the device's memory."""
        if self._made is not None and self._made.shape == shape:
            return self._made
        self._release()
        free_bytes = self._session.cuda.memory_info()[0]
        if not shape.fits_kernels() or shape.device_bytes() + _SPARE_BYTES > free_bytes:
            return None
        try:
            self._made = plan_whole_picture(self._device, shape, self._ends)
        except BaseException as error:
            self._session.drain()
            self._device.free()
            # Others may have taken it since, or it is in pieces.
            if isinstance(error, OutOfMemoryError):
                return None
            raise
        return self._made

    def _run(
        self, made: PicturePlan, pixels: Array, clock: StageClock, tile_progress: TileProgress | None
    ) -> Generator[FinishedBand]:
        self._busy = True
        try:
            # (H, W, 3), contiguous; held until the end: the copy up may read it late.
            grey = pixels.ndim == 2
            source = np.repeat(pixels[..., None], CHANNELS, axis=2) if grey else np.ascontiguousarray(pixels)
            self._begin(made, source)
            tiles = made.shape.tiles.tiles
            self._run_tiles(made, tile_progress(tiles) if tile_progress else tiles, clock.add)
            self._begin_laps.finish(clock.add)
            self._end(made, pixels, clock.add)
            yield from self._strips(made, clock.add)
        except BaseException:
            # An error, or a caller that wants no more: buffers must not be in use when they are freed.
            if self._made is not None:
                self._session.drain()
                self._release()
            raise
        finally:
            self._busy = False

    def _begin(self, made: PicturePlan, source: Array) -> None:
        cuda, stream, laps = self._session.cuda, self._session.compute, self._begin_laps
        laps.start()
        cuda.upload(made.pixels.pointer, source, stream)
        laps.lap()
        self._device.run(made.enlarge)
        laps.lap()
        cuda.clear(made.canvas.pointer, made.canvas.size_bytes, stream)
        laps.lap()

    def _run_tiles(self, made: PicturePlan, tiles: Iterable[Tile], record: Callable[[str, float], None]) -> None:
        columns = len(made.shape.tiles.lefts)
        numbers = (tile.row * columns + tile.column for tile in tiles)
        under_way: deque[Laps] = deque()
        for laps in cycle(self._tile_laps):
            if not (batch := list(islice(numbers, self._ends[0][0].shape[0]))):
                break
            if len(under_way) == _TILES_AHEAD:
                under_way.popleft().finish(record)
            self._run_batch(made, batch, laps)
            under_way.append(laps)
        while under_way:
            under_way.popleft().finish(record)

    def _run_batch(self, made: PicturePlan, tiles: Sequence[int], laps: Laps) -> None:
        """tiles: by number, as many as the networks take at once, or fewer."""
        laps.start()
        info, address = self._ends[0]
        if len(tiles) < info.shape[0]:
            self._session.cuda.clear(address, size_bytes_from_info(info), self._session.compute)
        for tile in tiles:
            self._device.run(made.extract[tile])
        laps.lap()
        for stage, (input_address, output_address) in zip(self._stages, self._addresses, strict=True):
            stage.run(input_address, output_address)
            laps.lap()
        for tile in tiles:
            self._device.run(made.accumulate[tile])
        laps.lap()

    def _end(self, made: PicturePlan, pixels: Array, record: Callable[[str, float], None]) -> None:
        """Raises VerificationError for an output that is no picture: seen in the floats, as bytes hide NaN."""
        laps = self._end_laps
        laps.start()
        extremes = self._device.run(made.check)
        laps.lap()
        if made.color_fix is not None:
            self._device.run(made.color_fix)
        laps.lap()
        self._device.run(made.output)
        laps.lap()
        found = np.empty(extremes.shape, extremes.dtype)
        self._session.cuda.download(found, extremes.pointer, self._session.compute)
        laps.lap()
        laps.finish(record)
        check = OutputCheck()
        check.add_range(found[..., 0].min(axis=1), found[..., 1].max(axis=1))
        check.finish(pixels)

    def _strips(self, made: PicturePlan, record: Callable[[str, float], None]) -> Iterator[FinishedBand]:
        output, laps = made.output.output, self._strip_laps
        row_bytes = output.size_bytes // output.shape[0]
        for top in range(0, output.shape[0], made.shape.strip_rows):
            # Whoever takes the rows may have closed the engine meanwhile.
            self._session.enter()
            count = min(made.shape.strip_rows, output.shape[0] - top)
            part = made.strip[: count * row_bytes]
            laps.start()
            self._session.cuda.download(part, output.pointer + top * row_bytes, self._session.compute)
            laps.lap()
            laps.finish(record)
            # A copy: the next strip comes into the same memory.
            yield FinishedBand(part.reshape(count, *output.shape[1:]).copy())

    def _release(self) -> None:
        """Free the buffers; the stream must be idle."""
        self._made = None
        self._device.free()
