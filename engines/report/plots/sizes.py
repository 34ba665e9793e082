"""What bits buy: the size of an engine's file against how near its pictures come to full precision's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intsr.engines.report.plots.style import INK, SERIES, WIDTH, drawing, standalone, svg_from_figure

AXES = {"psnr_to_fp_db": "PSNR to full precision, dB", "distance_to_fp": "Distance to full precision"}


def size_against_quality(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw a file of its own. rows: with `method`, `bits`, `engine_bytes` and the keys of AXES."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with drawing(WIDTH, 3.8) as figure:
        for place, (key, label) in enumerate(AXES.items()):
            axes = figure.add_subplot(1, 2, place + 1)
            for index, method in enumerate(methods):
                own = [row for row in rows if row["method"] == method]
                sizes, values = [row["engine_bytes"] / 1e6 for row in own], [row[key] for row in own]
                axes.plot(sizes, values, "o", color=SERIES[index % len(SERIES)], label=method if place == 0 else None)
                for row, size, value in zip(own, sizes, values, strict=True):
                    at = (size, value)
                    axes.annotate(row["bits"], at, (5, 3), textcoords="offset points", fontsize=8.5, color=INK)
            axes.margins(x=0.18, y=0.12)
            axes.set_xlabel("Engine file, MB")
            axes.set_title(label)
            axes.grid(alpha=0.6)
        figure.legend(loc="outside upper left", ncols=6, handlelength=1, columnspacing=1.2)
        svg = svg_from_figure(figure, "plot-sizes", f"Size against quality of {len(rows)} engines")
    return standalone(svg)
