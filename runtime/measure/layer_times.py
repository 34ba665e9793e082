"""Time by layer, measured apart from latency: asking for it slows an engine down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from intsr.bundle import read_manifest
from intsr.errors import UsageError
from intsr.runtime.backends.protocol import LayerTime
from intsr.runtime.engine import open_engine
from intsr.targets import TARGETS

WARM_UP_RUNS = 2


def check_layers(path: Path) -> None:
    """Raises UsageError where the engine's target reports no time by layer; BundleError for what is no engine."""
    target = read_manifest(path).target
    able = [each.name for each in TARGETS if each.times_layers]
    if target not in able:
        raise UsageError("--layers", f"{path} is of target {target}", f"target {' or '.join(able)}")


def layer_times_from_engine(path: Path, runs: int, **options: Any) -> list[dict[str, Any]]:
    """Measure one tile: rows `network, name, kind, implementation, ms, share` in execution order, means of `runs`.

    options: of `open_engine`. share: of all layers' time. Raises whatever `check_layers` and `open_engine` raise.
    """
    check_layers(path)
    with open_engine(path, profile=True, **options) as engine:
        x = np.random.default_rng(0).uniform(-1, 1, engine.networks[0].input.shape).astype(np.float32)
        samples = []
        for _ in range(WARM_UP_RUNS + runs):
            engine.run_pipeline(x)
            times = engine.backend.layer_times_ms()
            assert times is not None
            samples.append(times)
    del samples[:WARM_UP_RUNS]
    rows = []
    for network in samples[0]:
        # By name, in the order of the first run: OpenVINO leaves out a copy of a vector now and then.
        total_ms_of: dict[LayerTime, float] = defaultdict(float)
        for sample in samples:
            for layer in sample[network]:
                total_ms_of[replace(layer, ms=0.0)] += layer.ms
        for layer, total in total_ms_of.items():
            rows.append({"network": network, **asdict(replace(layer, ms=total / len(samples)))})
    total_ms = sum(row["ms"] for row in rows) or 1.0
    return [{**row, "share": row["ms"] / total_ms} for row in rows]


def totals_by_kind(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`kind, implementation, layers, ms, share`, the slowest first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["kind"], row["implementation"]].append(row)
    totals = [
        {
            "kind": kind,
            "implementation": implementation,
            "layers": len(group),
            "ms": sum(row["ms"] for row in group),
            "share": sum(row["share"] for row in group),
        }
        for (kind, implementation), group in groups.items()
    ]
    return sorted(totals, key=lambda total: total["ms"], reverse=True)
