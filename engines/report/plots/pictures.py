"""The colours of error maps, and the bar that explains them."""

from __future__ import annotations

from typing import Any

import numpy as np

from intsr.engines.report.measure.variants import U8
from intsr.engines.report.plots.style import WHAT, drawing, svg_from_figure
from intsr.optional import require

COLOURS = 64
_MAP = "inferno"


def map_colours() -> U8:
    """(COLOURS, 3) from no error to the largest."""
    colour_map = require("matplotlib", WHAT).colormaps[_MAP]
    return np.asarray(colour_map(np.linspace(0, 1, COLOURS))[:, :3] * 255).round().astype(np.uint8)


def colour_bar(largest: float) -> str:
    """An SVG element: 0 to `largest` levels."""
    colors: Any = require("matplotlib.colors", WHAT)
    with drawing(4.6, 0.72) as figure:
        axes = figure.add_subplot()
        bar = require("matplotlib.colorbar", WHAT).Colorbar(
            axes,
            cmap=require("matplotlib", WHAT).colormaps[_MAP].resampled(COLOURS),
            norm=colors.Normalize(0, largest),
            orientation="horizontal",
        )
        bar.outline.set_visible(False)
        bar.set_label("Error, levels of 255 (root mean square of R, G, B)")
        return svg_from_figure(
            figure, "plot-colour-bar", f"Colour scale of the error maps, 0 to {largest:.1f} levels"
        )
