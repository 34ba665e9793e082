"""What was measured of an engine, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from intsr.types import SYNTHETIC_NOTE

# Variation above this is noise that comparisons should not be trusted through; trtexec warns at the same.
VARIATION_LIMIT_PERCENT = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured of one entry, milliseconds a picture, or a chunk of frames."""

    path: str
    target: str
    bits: str
    precision: str
    # Of the picture or the frames, width and height, and how many tiles it is computed in.
    input_px: tuple[int, int]
    tiles: int
    # Frames of a chunk, and how many of them the next one computes again; None for pictures.
    chunk_frames: int | None
    shared_frames: int | None
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
    # From the mean; of a film frames, each once.
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
