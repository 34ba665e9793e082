"""Latency of upscalers, measured interleaved in one process, and what else a reader needs to believe it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.bundle import read_manifest
from intsr.errors import IntsrError, UsageError
from intsr.memory import peak_resident_bytes, resident_bytes
from intsr.runtime.backends.compatibility import check_runs_here
from intsr.runtime.backends.protocol import backend_module
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.machine import clock_from_gpus, gpus_from_nvidia_smi
from intsr.runtime.measure.measurement import Measurement
from intsr.runtime.upscaler import Upscaler, UpscaleResult
from intsr.runtime.video.clip import chunk_with_timings
from intsr.types import NETWORKS, NO_WEIGHT_OPTIONS, VIDEO_NETWORKS, WeightOptions

# target -> "module:function", a function as `open_reference`. Not engines: opened only when asked for.
REFERENCES: dict[str, str] = {"torch": "intsr.engines.verify.reference:open_reference"}

WARM_UP_MS = 200.0
# GPUs raise their clocks in steps, and take longer.
WARM_UP_DEVICE_MS = 1500.0
# A run that is longer wakes threads and fills caches itself.
LONG_RUN_MS = 1000.0
# Where nobody says how many: fewer of what takes very long.
DEFAULT_RUNS, FEW_RUNS, FEW_ABOVE_MS = 10, 3, 4000.0
# (frames, height, width, colours).
CLIP_DIMENSIONS = 4


@dataclass(slots=True, kw_only=True)
class Entry:
    """An upscaler under measurement, and the times taken so far. bits: `fp` where nothing is quantized."""

    path: str
    target: str
    bits: str
    upscaler: Upscaler
    engine_bytes: int | None = None
    # Random weights.
    synthetic: bool = False
    # What the process has grown by in opening it and running it once.
    opened_bytes: int | None = None
    peak_device_bytes: int | None = None
    # Of the GPU, after warming up.
    clock_mhz: float | None = None
    total_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    transfers_ms: list[float] = field(default_factory=list)
    # Of the last run.
    last_ms: float = 0.0
    tiles: int = 0

    def restart(self) -> None:
        """Forget the times taken so far."""
        self.total_ms, self.stages_ms, self.transfers_ms = [], [], []

    @property
    def device(self) -> str | None:
        """The GPU, None for the CPU."""
        return self.upscaler.backend.device

    def run(self, picture: Array) -> UpscaleResult:
        """Run once, unmeasured by anything but the result itself, and note the GPU memory that it took."""
        if picture.ndim == CLIP_DIMENSIONS:
            result = chunk_with_timings(self.upscaler, picture)
        else:
            result = self.upscaler.upscale_with_timings(picture)
        self.last_ms, self.tiles = result.total_ms, result.tiles
        taken = self.upscaler.backend.device_bytes()
        if taken is not None:
            self.peak_device_bytes = max(self.peak_device_bytes or 0, taken)
        return result

    def measure(self, picture: Array) -> None:
        result = self.run(picture)
        self.total_ms.append(result.total_ms)
        self.stages_ms.append(result.stages_ms)
        if result.transfers_ms is not None:
            self.transfers_ms.append(result.transfers_ms)


def entry_from_engine(path: Path, **options: Any) -> Entry:
    """options: of `open_engine`. Raises whatever that raises."""
    # Checked first: a library that is not there, or too old, is told as `open_engine` tells it.
    manifest = read_manifest(path)
    check_runs_here(manifest, path)
    # Else the first engine of a library would be charged with it.
    backend_module(manifest.target).load_library()
    before = resident_bytes()
    engine = open_engine(path, **options)
    engine.warm_up()
    return Entry(
        path=str(path),
        target=manifest.target,
        bits=manifest.bits,
        upscaler=engine,
        engine_bytes=path.stat().st_size,
        synthetic=manifest.synthetic,
        opened_bytes=resident_bytes() - before,
    )


def counterpart_of(path: Path) -> Path | None:
    """Return a full-precision engine of the same model, target, tile and chunk in the same folder, if there is one.

    Integers are only worth their name where they beat it. Raises BundleError, UsageError for `path` itself.
    """
    manifest = read_manifest(path)
    for other in sorted(path.parent.glob("*.engine")):
        try:
            found = read_manifest(other)
        except (IntsrError, OSError):
            continue
        keys = ("model", "target", "tile_px", "upscale_factor", "chunk")
        if found.bits == "fp" and all(getattr(found, key) == getattr(manifest, key) for key in keys):
            return other
    return None


def entry_from_reference(
    model: str,
    tile_px: int,
    threads: int,
    weights: WeightOptions = NO_WEIGHT_OPTIONS,
    *,
    frames: int | None = None,
) -> Entry:
    """Open the model as torch runs it, in float32, eager. frames: of a video model's chunk.

    Raises MissingLibraryError, ModelError, UsageError.
    """
    module, _, function = REFERENCES["torch"].partition(":")
    upscaler: Upscaler = getattr(import_module(module), function)(model, tile_px, threads, weights, frames=frames)
    return Entry(path=model, target="torch", bits="fp", upscaler=upscaler, synthetic=upscaler.synthetic)


class InterruptedMeasurement(KeyboardInterrupt):
    """Ctrl-C came when every entry had been measured at least once. measurements: so far."""

    def __init__(self, measurements: list[Measurement]) -> None:
        super().__init__()
        self.measurements = measurements


def bench_picture(width_px: int, height_px: int) -> Array:
    """(H, W, 3) uint8: waves and grain, the same every time. Latency does not depend on what is in it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height_px, 0:width_px] / max(width_px, height_px)
    waves = [0.5 + 0.4 * np.sin(2 * np.pi * (frequency * x + y * y)) for frequency in (2, 5, 11)]
    grain = rng.normal(0, 0.03, (height_px, width_px, 3))
    return np.asarray((np.clip(np.stack(waves, axis=2) + grain, 0, 1) * 255).round(), np.uint8)


def frames_of_entries(entries: Sequence[Entry]) -> int | None:
    """Return how many frames the chunks of video engines have; None for pictures. Raises UsageError for a mixture."""
    chunks = {entry.path: entry.upscaler.backend.chunk for entry in entries}
    kinds = {chunk: path for path, chunk in chunks.items()}
    if len(kinds) > 1:
        of = {
            path: "pictures" if chunk is None else f"chunks of {chunk.frames} frames, {chunk.overlap_frames} shared"
            for chunk, path in kinds.items()
        }
        got = "; ".join(f"{path}: {what}" for path, what in of.items())
        raise UsageError("ENGINE...", got, "engines of pictures alone, or of chunks of one length")
    (chunk,) = kinds
    return None if chunk is None else chunk.frames


def bench_clip(frames: int, width_px: int, height_px: int) -> Array:
    """(F, H, W, 3) uint8: `bench_picture`, moved by a pixel a frame."""
    picture = bench_picture(width_px, height_px)
    return np.stack([np.roll(picture, index, axis=1) for index in range(frames)])


def measure(
    entries: Sequence[Entry],
    picture: Array,
    min_runs: int | None,
    min_seconds: float,
    on_round: Callable[[float, float], None] = lambda share, left_s: None,
) -> list[Measurement]:
    """Warm every entry up, then run A B C A B C ... until each has `min_runs` and `min_seconds` of measured time.

    Where there are several, every measured run of less than `LONG_RUN_MS` follows an unmeasured one of the same
    entry: caches are then its own, and the threads of the one before, which spin for a while after their work, sleep.
    min_runs: None for `DEFAULT_RUNS`, or `FEW_RUNS` where one takes longer than `FEW_ABOVE_MS`. on_round: told the
    share done, 0 to 1, and the seconds left, first when all are warm. Raises InterruptedMeasurement.
    """
    for entry in entries:
        entry.restart()
        _warm_up(entry, picture)
    if min_runs is None:
        min_runs = FEW_RUNS if max(entry.last_ms for entry in entries) > FEW_ABOVE_MS else DEFAULT_RUNS
    doubled = [len(entries) > 1 and entry.last_ms < LONG_RUN_MS for entry in entries]
    round_s = sum(entry.last_ms * (1 + twice) for entry, twice in zip(entries, doubled, strict=True)) / 1e3
    rounds = max(min_runs, *(math.ceil(min_seconds * 1e3 / max(entry.last_ms, 1e-3)) for entry in entries))
    share = 0.0
    on_round(share, rounds * round_s)
    try:
        while share < 1:
            for entry, twice in zip(entries, doubled, strict=True):
                if twice:
                    entry.run(picture)
                entry.measure(picture)
            share = min(
                min(len(e.total_ms) / max(min_runs, 1), sum(e.total_ms) / max(min_seconds * 1e3, 1e-9))
                for e in entries
            )
            on_round(min(share, 1.0), max(rounds - len(entries[0].total_ms), 0) * round_s)
    except KeyboardInterrupt as interrupt:
        if all(entry.total_ms for entry in entries):
            raise InterruptedMeasurement([_measurement(entry, picture) for entry in entries]) from interrupt
        raise
    return [_measurement(entry, picture) for entry in entries]


def _warm_up(entry: Entry, picture: Array) -> None:
    warmed_ms = 0.0
    while warmed_ms < (WARM_UP_MS if entry.device is None else WARM_UP_DEVICE_MS):
        warmed_ms += entry.run(picture).total_ms
    if entry.device is None:
        return
    with ThreadPoolExecutor(1) as pool:
        gpus = pool.submit(gpus_from_nvidia_smi)
        # A GPU that waits lowers its clock: it works until it is read.
        entry.run(picture)
        while not gpus.done():
            entry.run(picture)
    entry.clock_mhz = clock_from_gpus(gpus.result(), entry.device)


def _measurement(entry: Entry, picture: Array) -> Measurement:
    times = np.array(entry.total_ms)
    p90, p95, p99 = np.percentile(times, (90, 95, 99)).tolist()
    mean_ms = float(times.mean())
    chunk, (height_px, width_px) = entry.upscaler.backend.chunk, picture.shape[-3:-1]
    count = 1 if chunk is None else chunk.frames - chunk.overlap_frames
    output_pixels = count * height_px * width_px * entry.upscaler.upscale_factor**2
    stages = list(entry.stages_ms[0])
    networks = [stage for stage in stages if stage in (*NETWORKS, *VIDEO_NETWORKS)]
    return Measurement(
        path=entry.path,
        target=entry.target,
        bits=entry.bits,
        precision=entry.upscaler.backend.precision,
        input_px=(width_px, height_px),
        tiles=entry.tiles,
        chunk_frames=None if chunk is None else chunk.frames,
        shared_frames=None if chunk is None else chunk.overlap_frames,
        runs=len(times),
        median_ms=float(np.median(times)),
        mean_ms=mean_ms,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(times.min()),
        max_ms=float(times.max()),
        variation_percent=float(times.std() / mean_ms * 100),
        images_per_s=count * 1e3 / mean_ms,
        output_megapixels_per_s=output_pixels / mean_ms / 1e3,
        stages_ms={stage: float(np.median([run[stage] for run in entry.stages_ms])) for stage in stages},
        networks_ms=float(np.median([sum(run[name] for name in networks) for run in entry.stages_ms])),
        transfers_ms=float(np.median(entry.transfers_ms)) if entry.transfers_ms else None,
        engine_bytes=entry.engine_bytes,
        opened_bytes=entry.opened_bytes,
        peak_process_bytes=peak_resident_bytes(),
        peak_device_bytes=entry.peak_device_bytes,
        device=entry.device,
        cuda_graphs=entry.upscaler.backend.uses_graphs(),
        clock_mhz=entry.clock_mhz,
        synthetic=entry.synthetic,
        notes=entry.upscaler.backend.notes,
    )


def default_threads() -> int:
    """Count the CPUs that this process may use: every entry gets as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
