"""Drawings of engines: time by stage, quality against latency and memory, integer share by network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intsr.engines.report.plots.style import (
    ACCENT,
    INK,
    MUTED,
    NETWORK_LABELS,
    SERIES,
    WIDTH,
    drawing,
    svg_from_figure,
)
from intsr.runtime.upscaler import STAGES

Rows = Sequence[Mapping[str, Any]]
_NAME_CHARACTERS = 34
MIN_SPAN_DB = 1.0
# Networks keep the colours they have elsewhere.
_STAGE_COLOURS = dict(zip(("encoder", "unet", "decoder", "resize", "blend", "color_fix"), SERIES, strict=False))
_STAGE_LABELS = NETWORK_LABELS | {"resize": "Resize", "blend": "Blend", "color_fix": "Colour fix"}


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


def _beside(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=INK, fontsize=9.5)


def _finish_bars(axes: Any, names: Sequence[str], largest: float, xlabel: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlim(0, largest)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", alpha=0.6)


def stages(rows: Rows) -> str:
    """A bar an engine. rows: with `name` and `stages_ms`."""
    with drawing(WIDTH, 1.15 + 0.5 * len(rows)) as figure:
        axes = figure.add_subplot()
        left = [0.0] * len(rows)
        for stage in STAGES:
            widths = [float(row["stages_ms"].get(stage, 0)) for row in rows]
            colour = _STAGE_COLOURS[stage]
            axes.barh(range(len(rows)), widths, 0.62, left, color=colour, label=_STAGE_LABELS[stage])
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, total in enumerate(left):
            _beside(axes, total, place, f"{total:.0f} ms")
        _finish_bars(axes, [_short(row["name"]) for row in rows], max(left) * 1.12 or 1, "Time a picture, ms")
        figure.legend(loc="outside upper left", ncols=6, handlelength=1, columnspacing=1.2)
        return svg_from_figure(figure, "plot-stages", f"Time by stage of {len(rows)} engines")


def quality(rows: Rows, key: str, label: str) -> str:
    """Quality against latency, the area of a point its memory. rows: with `name`, `median_ms`, `memory_bytes`."""
    known = [row["memory_bytes"] for row in rows if row["memory_bytes"]]
    with drawing(WIDTH, 3.6) as figure:
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            area = 60 + 700 * row["memory_bytes"] / max(known) if row["memory_bytes"] else 60
            colour = SERIES[index % len(SERIES)]
            axes.scatter(row["median_ms"], row[key], area, color=colour, alpha=0.55, linewidths=0)
            axes.plot(row["median_ms"], row[key], ".", color=colour, markersize=4)
            memory = f"\n{row['memory_bytes'] / 2**20:.0f} MiB" if row["memory_bytes"] else ""
            late = row["median_ms"] > 0.6 * max(other["median_ms"] for other in rows)
            axes.annotate(
                f"{_short(row['name'])}{memory}",
                (row["median_ms"], row[key]),
                ((-1 if late else 1) * (6 + area**0.5 / 2), 0),
                textcoords="offset points",
                ha="right" if late else "left",
                va="center",
                fontsize=9.5,
                color=INK,
            )
        axes.set_xlim(0, max(row["median_ms"] for row in rows) * 1.12 or 1)
        # Less than half a decibel is not drawn as if it were much.
        values = [row[key] for row in rows]
        middle, half = (max(values) + min(values)) / 2, max((max(values) - min(values)) * 0.8, MIN_SPAN_DB / 2)
        axes.set_ylim(middle - half, middle + half)
        axes.set_xlabel("Latency, ms a picture (left is better)")
        axes.set_ylabel(label)
        axes.set_title("Quality against latency; area: memory" if known else "Quality against latency")
        axes.grid(alpha=0.6)
        return svg_from_figure(figure, "plot-quality", f"Quality against latency of {len(rows)} engines")


def integer_share(networks: Rows) -> str:
    """MACs by network of one engine, integer and not."""
    with drawing(WIDTH, 0.95 + 0.42 * len(networks)) as figure:
        axes = figure.add_subplot()
        totals = [network["macs"] / 1e9 for network in networks]
        integer = [total * network["int8_mac_share"] for total, network in zip(totals, networks, strict=True)]
        rest = [total - share for total, share in zip(totals, integer, strict=True)]
        axes.barh(range(len(totals)), integer, 0.6, color=ACCENT, label="int8")
        axes.barh(range(len(totals)), rest, 0.6, integer, color=MUTED, label="not int8")
        for place, (total, network) in enumerate(zip(totals, networks, strict=True)):
            _beside(axes, total, place, f"{network['int8_mac_share']:.1%} int8")
        names = [NETWORK_LABELS[network["name"]] for network in networks]
        xlabel = "Convolutions and linear layers, billion multiplications a tile"
        _finish_bars(axes, names, max(totals) * 1.18, xlabel)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        return svg_from_figure(figure, "plot-integer-share", "Share of int8 multiplications by network")
