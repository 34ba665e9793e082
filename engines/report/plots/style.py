"""Drawings that read on light and on dark ground: SVG whose colours are the page's own variables.

matplotlib knows no CSS. It is given colours that nothing else has, each of which is then replaced by a variable.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

from intsr.optional import require

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
WHAT = "intsr report"
# name of a CSS variable -> the colour that stands for it while matplotlib draws
_VARIABLES = "ink muted line surface encoder unet decoder accent warn s1 s2 s3 s4 s5"
COLOURS = {name: f"#0100{index:02x}" for index, name in enumerate(_VARIABLES.split())}
INK, MUTED, LINE, ACCENT, WARN = (COLOURS[name] for name in ("ink", "muted", "line", "accent", "warn"))
WIDTH = 9.0  # inches, of a drawing as wide as the page
NETWORK_LABELS = {"encoder": "Encoder", "unet": "UNet", "transformer": "Transformer", "decoder": "Decoder"}
# A video model has a transformer in the UNet's place.
NETWORK_COLOURS = {name: COLOURS["unet" if name == "transformer" else name] for name in NETWORK_LABELS}
SERIES = tuple(COLOURS[name] for name in ("encoder", "unet", "decoder", "s1", "s2", "s3", "s4", "s5"))
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A figure of that many inches in the page's style. Raises MissingLibraryError."""
    matplotlib = require("matplotlib", WHAT)
    figures = require("matplotlib.figure", WHAT)
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names are drawn by the browser, which has glyphs that matplotlib's font has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield figures.Figure(figsize=(width, height), layout="constrained")


def svg_from_figure(figure: Any, name: str, description: str) -> str:
    """The drawing as an element of the page. name: no other drawing's. description: for who cannot see it.

    Call it inside `drawing`.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(stream.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("id", name)
    for element in root.iter():
        _own_names(element, name)
    text = ElementTree.tostring(root, encoding="unicode")
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def standalone(svg: str) -> str:
    """`svg_from_figure`'s drawing as a file of its own: on white, with the page's colours for light ground."""
    css = (files("intsr.engines.report") / "templates" / "style.css").read_text(encoding="utf-8")
    variables = css[css.index("{") + 1 : css.index("}")]
    start = svg.index(">") + 1
    return f"{svg[:start]}<style>svg {{{variables}background: var(--surface)}}</style>{svg[start:]}"


def _own_names(element: ElementTree.Element, prefix: str) -> None:
    """Give ids a prefix: two drawings in one page may not share any."""
    if "id" in element.attrib and element.attrib["id"] != prefix:
        element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
    link = element.attrib.pop(f"{{{XLINK}}}href", None)
    if link is not None:
        element.attrib["href"] = f"#{prefix}-{link[1:]}" if link.startswith("#") else link
    for key in ("clip-path", "style"):
        if key in element.attrib:
            element.attrib[key] = element.attrib[key].replace("url(#", f"url(#{prefix}-")
