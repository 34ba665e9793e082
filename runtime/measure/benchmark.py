"""Latency of upscalers, measured interleaved in one process, and what else a reader needs to believe it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.bundle import read_manifest
from intsr.errors import IntsrError
from intsr.memory import peak_resident_bytes, resident_bytes
from intsr.runtime.backends.compatibility import check_runs_here
from intsr.runtime.backends.protocol import backend_module
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.machine import clock_from_gpus, gpus_from_nvidia_smi
from intsr.runtime.upscaler import STAGES, Upscaler, UpscaleResult
from intsr.types import NETWORKS, SYNTHETIC_NOTE

# target -> "module:function", function(model, tile_px, threads) -> Upscaler. Not engines: opened only when asked for.
REFERENCES: dict[str, str] = {"torch": "intsr.engines.verify.reference:open_reference"}

WARM_UP_MS = 200.0
# GPUs raise their clocks in steps, and take longer.
WARM_UP_DEVICE_MS = 1500.0
# A run that is longer wakes threads and fills caches itself.
LONG_RUN_MS = 1000.0
# Where nobody says how many: fewer of what takes very long.
DEFAULT_RUNS, FEW_RUNS, FEW_ABOVE_MS = 10, 3, 4000.0
# Variation above this is noise that comparisons should not be trusted through; trtexec warns at the same.
VARIATION_LIMIT_PERCENT = 2.5


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured of one entry, milliseconds a picture."""

    path: str
    target: str
    bits: str
    precision: str
    # Of the picture, width and height, and how many tiles it is computed in.
    input_px: tuple[int, int]
    tiles: int
    runs: int
    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    # Standard deviation over mean.
    variation_percent: float
    # From the mean.
    images_per_s: float
    output_megapixels_per_s: float
    # Medians by stage.
    stages_ms: dict[str, float]
    # The networks alone, on a GPU by its own clock and without copies.
    networks_ms: float
    # Copies to and from a GPU, which run beside the networks.
    transfers_ms: float | None
    # Of the file, and as those of `Entry`; the process's with all entries open.
    engine_bytes: int | None
    opened_bytes: int | None
    peak_process_bytes: int
    peak_device_bytes: int | None = None
    device: str | None = None
    cuda_graphs: bool | None = None
    # Of the GPU's multiprocessors, read while it worked, just before measuring.
    clock_mhz: float | None = None
    synthetic: bool = False
    # What the user should know of how it runs here.
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the numbers; the notes are among the warnings (`warnings_from_measurements`)."""
        return {name: value for name, value in asdict(self).items() if name != "notes"}


def entry_from_engine(path: Path, **options: Any) -> Entry:
    """options: of `open_engine`. Raises whatever that raises, UsageError for a video engine."""
    # Checked first: a library that is not there, or too old, is told as `open_engine` tells it.
    manifest = read_manifest(path)
    manifest.check_sees_pictures("bench", path)
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
    """Return a full-precision engine of the same model, target and tile in the same folder, if there is one.

    Integers are only worth their name where they beat it. Raises BundleError, UsageError for `path` itself.
    """
    manifest = read_manifest(path)
    for other in sorted(path.parent.glob("*.engine")):
        try:
            found = read_manifest(other)
        except (IntsrError, OSError):
            continue
        keys = ("model", "target", "tile_px", "upscale_factor")
        if found.bits == "fp" and all(getattr(found, key) == getattr(manifest, key) for key in keys):
            return other
    return None


def entry_from_reference(
    model: str, tile_px: int, threads: int, context: Path | None = None, lora: Path | None = None
) -> Entry:
    """Open the model as torch runs it, in float32, eager. Raises MissingLibraryError, ModelError."""
    module, _, function = REFERENCES["torch"].partition(":")
    upscaler: Upscaler = getattr(import_module(module), function)(model, tile_px, threads, context, lora)
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
    output_pixels = picture.shape[0] * picture.shape[1] * entry.upscaler.upscale_factor**2
    return Measurement(
        path=entry.path,
        target=entry.target,
        bits=entry.bits,
        precision=entry.upscaler.backend.precision,
        input_px=(picture.shape[1], picture.shape[0]),
        tiles=entry.tiles,
        runs=len(times),
        median_ms=float(np.median(times)),
        mean_ms=mean_ms,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(times.min()),
        max_ms=float(times.max()),
        variation_percent=float(times.std() / mean_ms * 100),
        images_per_s=1e3 / mean_ms,
        output_megapixels_per_s=output_pixels / mean_ms / 1e3,
        stages_ms={stage: float(np.median([run[stage] for run in entry.stages_ms])) for stage in STAGES},
        networks_ms=float(np.median([sum(run[name] for name in NETWORKS) for run in entry.stages_ms])),
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


def relative_to_first(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """`speedup` above 1: so many times as fast as the first on a picture of that size, by the medians."""
    first: dict[tuple[int, int], float] = {}
    for m in measurements:
        first.setdefault(m.input_px, m.median_ms)
    return [
        {"path": m.path, "target": m.target, "input_px": m.input_px, "speedup": first[m.input_px] / m.median_ms}
        for m in measurements
    ]


def warnings_from_measurements(measurements: Sequence[Measurement]) -> list[str]:
    """What a reader of the numbers must know: noise, integers slower than full precision or not run as such, random
    weights.
    """
    several = len({m.input_px for m in measurements}) > 1
    on = {m.input_px: f" on {m.input_px[0]}x{m.input_px[1]}" if several else "" for m in measurements}
    texts = [
        f"{m.path}{on[m.input_px]}: runs vary by {m.variation_percent:.1f} % (over {VARIATION_LIMIT_PERCENT} %): "
        "close other programs or measure longer"
        for m in measurements
        if m.variation_percent > VARIATION_LIMIT_PERCENT
    ]
    texts += [
        f"INT IS SLOWER HERE{on[full.input_px]}: {integer.path} ({integer.bits}) takes {integer.median_ms:.1f} ms, "
        f"{full.path} (full precision, {full.target}) {full.median_ms:.1f} ms"
        for integer in measurements
        for full in measurements
        if integer.bits != "fp" and full.bits == "fp" and full.median_ms < integer.median_ms
        if integer.input_px == full.input_px
    ]
    texts += [f"{m.path}: {note}" for m in measurements for note in m.notes]
    texts += [f"{m.path}: {SYNTHETIC_NOTE}" for m in measurements if m.synthetic]
    # Once each, however many sizes there are.
    return list(dict.fromkeys(texts))


def default_threads() -> int:
    """Count the CPUs that this process may use: every entry gets as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
