"""The page itself, from templates that escape everything they are given, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intsr.engines.report.plots.style import WHAT
from intsr.optional import require
from intsr.runtime.measure.metrics import EXACT_DB

TEMPLATES = Path(__file__).parents[1] / "templates"
SPARK_WIDTH, SPARK_HEIGHT = 120, 26
# What stands for None.
NONE = "–"


def render_page(values: Mapping[str, Any]) -> str:
    """values: `head`, `pictures`, `calibration`, `engines` (facts or None) and `art` (section -> drawings).

    Drawings are marked as safe: matplotlib escapes the names in them. Raises MissingLibraryError.
    """
    jinja2 = require("jinja2", WHAT)
    markup = require("markupsafe", WHAT).Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (decibels, milliseconds, megabytes, mebibytes, share, plain, fixed, times, spark)
    environment.filters |= {function.__name__: function for function in filters} | {
        "drawing": markup,
        # A line may end behind every dot of a layer's name.
        "breakable": lambda site: markup(".<wbr>").join(site.split(".")),
    }
    return str(environment.get_template("page.html").render(values))


def decibels(value: float | None) -> str:
    if value is None:
        return NONE
    return "identical" if value >= EXACT_DB else f"{value:.2f} dB"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 1e6:.1f} MB"


def mebibytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    """Write a share of 1 as a percentage; what is not 0 never reads as 0."""
    if value is None:
        return NONE
    return "< 0.01 %" if 0 < value < 1e-4 else f"{value * 100:.2f} %"


def plain(value: Any) -> str:
    return NONE if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def fixed(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def times(value: float) -> str:
    return f"{value:.2f}×"


def spark(histogram: Sequence[int]) -> str:
    """A small histogram as the `d` of an SVG path, SPARK_WIDTH x SPARK_HEIGHT: heights are logarithms of counts."""
    heights = np.log1p(np.asarray(histogram, float))
    heights *= SPARK_HEIGHT / max(float(heights.max()), 1e-9)
    step = SPARK_WIDTH / len(heights)
    points = [f"V{SPARK_HEIGHT - height:.1f}H{(i + 1) * step:.2f}" for i, height in enumerate(heights)]
    return "".join([f"M0 {SPARK_HEIGHT}", *points, f"V{SPARK_HEIGHT}Z"])
