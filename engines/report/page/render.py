"""The page itself, from templates that escape everything they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intsr.engines.report.page.formats import FILTERS
from intsr.engines.report.plots.style import WHAT
from intsr.optional import require

TEMPLATES = Path(__file__).parents[1] / "templates"
SPARK_WIDTH, SPARK_HEIGHT = 120, 26


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
    environment.filters |= FILTERS | {
        "spark": spark,
        "drawing": markup,
        # A line may end behind every dot of a layer's name.
        "breakable": lambda site: markup(".<wbr>").join(site.split(".")),
    }
    return str(environment.get_template("page.html").render(values))


def spark(histogram: Sequence[int]) -> str:
    """A small histogram as the `d` of an SVG path, SPARK_WIDTH x SPARK_HEIGHT: heights are logarithms of counts."""
    import numpy as np

    heights = np.log1p(np.asarray(histogram, float))
    heights *= SPARK_HEIGHT / max(float(heights.max()), 1e-9)
    step = SPARK_WIDTH / len(heights)
    points = [f"M0 {SPARK_HEIGHT}"]
    for index, height in enumerate(heights):
        points.append(f"V{SPARK_HEIGHT - height:.1f}H{(index + 1) * step:.2f}")
    return "".join([*points, f"V{SPARK_HEIGHT}Z"])
