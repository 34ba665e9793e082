"""Latency of upscalers, measured interleaved in one process, and what else a reader needs to believe it."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.networks import Array, precision_from_network
from intsr.runtime.upscaler import STAGES, Upscaler
from intsr.types import SYNTHETIC_NOTE

# target -> "module:function", function(model, tile_px, threads) -> Upscaler. Not engines: opened only when asked for.
REFERENCES: dict[str, str] = {"torch": "intsr.calib.torch_engine:open_reference"}

WARM_UP_MS = 200.0
# Variation above this is noise that comparisons should not be trusted through; trtexec warns at the same.
VARIATION_LIMIT_PERCENT = 2.5
INCLUDED = "resize, tiling, three networks, blending and colour fix; no file is read or written"
_LIBRARIES = ("numpy", "pillow", "openvino", "onnxruntime", "torch")


@dataclass(slots=True)
class Entry:
    """An upscaler under measurement. bits: `fp` where nothing is quantized. synthetic: of random weights."""

    path: str
    target: str
    bits: str
    precision: str
    upscaler: Upscaler
    engine_bytes: int | None = None
    synthetic: bool = False
    total_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of one entry, milliseconds a picture. stages_ms: medians by stage. variation_percent: deviation over mean.

    images_per_s, output_megapixels_per_s: from the mean. peak_process_bytes: of the whole process, all entries.
    synthetic: of random weights.
    """

    path: str
    target: str
    bits: str
    precision: str
    runs: int
    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    variation_percent: float
    images_per_s: float
    output_megapixels_per_s: float
    stages_ms: dict[str, float]
    engine_bytes: int | None
    peak_process_bytes: int
    peak_device_bytes: int | None = None
    synthetic: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def entry_from_engine(path: Path, threads: int, precision: str) -> Entry:
    """Raises whatever `open_engine` raises."""
    engine: Engine = open_engine(path, threads, precision)
    manifest, size_bytes = engine.manifest, path.stat().st_size
    return Entry(str(path), manifest.target, manifest.bits, engine.precision, engine, size_bytes, manifest.synthetic)


def entry_from_reference(model: str, tile_px: int, threads: int) -> Entry:
    """The model as torch runs it, in float32, eager. Raises MissingLibraryError, ModelError."""
    module, _, function = REFERENCES["torch"].partition(":")
    upscaler: Upscaler = getattr(import_module(module), function)(model, tile_px, threads)
    precision = precision_from_network(upscaler.networks[0])
    return Entry(model, "torch", "fp", precision, upscaler, synthetic=upscaler.synthetic)


def bench_picture(size_px: int) -> Array:
    """(size, size, 3) uint8: waves and grain, the same every time. Latency does not depend on what is in it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size_px, 0:size_px] / size_px
    waves = [0.5 + 0.4 * np.sin(2 * np.pi * (frequency * x + y * y)) for frequency in (2, 5, 11)]
    grain = rng.normal(0, 0.03, (size_px, size_px, 3))
    return np.asarray((np.clip(np.stack(waves, axis=2) + grain, 0, 1) * 255).round(), np.uint8)


def measure(
    entries: Sequence[Entry],
    picture: Array,
    min_runs: int,
    min_seconds: float,
    on_round: Callable[[float], None] = lambda share: None,
) -> list[Measurement]:
    """Warm every entry up, then run A B C A B C ... until each has `min_runs` and `min_seconds` of measured time.

    Where there are several, every measured run follows an unmeasured one of the same entry: caches are then its own,
    and the threads of the one before, which spin for a while after their work, sleep. on_round: told the share done,
    0 to 1.
    """
    for entry in entries:
        warmed_ms = 0.0
        while warmed_ms < WARM_UP_MS:
            warmed_ms += entry.upscaler.upscale_with_timings(picture).total_ms
    share = 0.0
    while share < 1:
        for entry in entries:
            if len(entries) > 1:
                entry.upscaler.upscale_with_timings(picture)
            result = entry.upscaler.upscale_with_timings(picture)
            entry.total_ms.append(result.total_ms)
            entry.stages_ms.append(result.stages_ms)
        shares = [
            min(len(e.total_ms) / max(min_runs, 1), sum(e.total_ms) / max(min_seconds * 1e3, 1e-9)) for e in entries
        ]
        share = min(shares)
        on_round(min(share, 1.0))
    return [_measurement(entry, picture) for entry in entries]


def _measurement(entry: Entry, picture: Array) -> Measurement:
    times = np.array(entry.total_ms)
    p90, p95, p99 = (float(np.percentile(times, q)) for q in (90, 95, 99))
    mean_ms = float(times.mean())
    output_pixels = picture.shape[0] * picture.shape[1] * entry.upscaler.upscale_factor**2
    return Measurement(
        path=entry.path,
        target=entry.target,
        bits=entry.bits,
        precision=entry.precision,
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
        engine_bytes=entry.engine_bytes,
        peak_process_bytes=peak_process_bytes(),
        synthetic=entry.synthetic,
    )


def peak_process_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def relative_to_first(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """`speedup` above 1: so many times as fast as the first, by the medians."""
    first = measurements[0].median_ms
    return [{"path": m.path, "target": m.target, "speedup": first / m.median_ms} for m in measurements]


def warnings_from_measurements(measurements: Sequence[Measurement]) -> list[str]:
    """What a reader of the numbers must know: noise, integers slower than full precision, random weights."""
    texts = [
        f"{m.path}: runs vary by {m.variation_percent:.1f} % (over {VARIATION_LIMIT_PERCENT} %): "
        "close other programs or measure longer"
        for m in measurements
        if m.variation_percent > VARIATION_LIMIT_PERCENT
    ]
    texts += [
        f"INT IS SLOWER HERE: {integer.path} ({integer.bits}) takes {integer.median_ms:.1f} ms, "
        f"{full.path} (full precision, {full.target}) {full.median_ms:.1f} ms"
        for integer in measurements
        for full in measurements
        if integer.bits != "fp" and full.bits == "fp" and full.median_ms < integer.median_ms
    ]
    texts += [f"{m.path}: {SYNTHETIC_NOTE}" for m in measurements if m.synthetic]
    return texts


def default_threads() -> int:
    """CPUs that this process may use: every entry gets as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int, size_px: int) -> dict[str, Any]:
    """Where and when, for the record beside the numbers."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "input_px": [size_px, size_px],
        "included": INCLUDED,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
