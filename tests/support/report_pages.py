"""Small engines, pictures and calibrations for reports, and what a page is read with."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from identity_engines import write_identity_engine
from PIL import Image

from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.engines.commands.report import report

HOSTILE = "\"><script>alert(1)<script> & 'x'.png"
# Long, too: it must not make a page wider than its window.
HOSTILE_ENGINE = f"<b onclick=alert(2)>$x$-{'long' * 20}"
VOID = {"meta", "link", "img", "input", "br", "wbr", "hr", "path", "rect", "line", "use"}


def write_engine(path: Path, gain: float = 1.0, bias: float = 0.0, **changes: object) -> Path:
    """Enlarges twice, tiles of 16 px; its networks are the identity, but for a gain and a bias at the end."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    written = write_identity_engine(folder, "onnxruntime", gain, bias, **changes)
    return written.replace(path)


def plan(int8_mac_share: float, *float_layers: str) -> dict[str, Any]:
    """What a builder tells of a network."""
    layers = [{"name": name, "precision": "bf16", "macs": 1000} for name in float_layers]
    numbers = {"kernels": 3, "fp32_gemms": 0, "activation_bytes": 5000, "weight_bytes": 400, "macs": 100000}
    return {**numbers, "kernels_by_kind": {"Conv": 3}, "int8_mac_share": int8_mac_share, "float_layers": layers}


def write_pictures(lr: Path, hr: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Parts of a photograph: (width, height) by name, and originals twice as large."""
    from skimage.data import astronaut

    for folder in (lr, hr):
        folder.mkdir()
    for index, (name, (width, height)) in enumerate(sizes.items()):
        top = 40 + 60 * index
        original = Image.fromarray(np.ascontiguousarray(astronaut()[top : top + 2 * height, 180 : 180 + 2 * width]))
        original.save(hr / name)
        original.resize((width, height), Image.Resampling.BICUBIC).save(lr / name)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Any] = field(default_factory=list)

    def find_all(self, tag: str, **attributes: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and all(child.attributes.get(k.strip("_")) == v for k, v in attributes.items()):
                    found.append(child)
                found += child.find_all(tag, **attributes)
        return found

    def everything(self) -> list[Element]:
        inner = [child for child in self.children if isinstance(child, Element)]
        return [*inner, *(element for child in inner for element in child.everything())]

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())


class Page(HTMLParser):
    """The tree of a page whose tags close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open[-1].tag == tag, (self._open[-1].tag, tag)
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def rows(self, caption: str) -> list[list[Element]]:
        """Cells of the body of the table with that caption."""
        tables = [t for t in self.root.find_all("table") if any(c.text == caption for c in t.find_all("caption"))]
        assert len(tables) == 1, caption
        return [row.find_all("td") for row in tables[0].find_all("tbody")[0].find_all("tr")]


def value_of(cell: Element) -> float | None:
    text = cell.attributes["data-value"]
    return float(text) if text else None


CURVES = {
    "encoder: vae.encoder.conv_out: let": [[0, 2.0, 2.0], [5, 1.0, 1.5]],
    "unet: all": [[0, 1.0, 1.0], [10, 0.5, 0.8]],
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(report, [str(argument) for argument in arguments])


@dataclass(frozen=True)
class Made:
    folder: Path
    text: str
    page: Any
    facts: dict[str, Any]


def write_sources(folder: Path, calibration: Calibration) -> Path:
    """Write calibration/, fp.engine, an integer engine, lr/, hr/, bench.json."""
    save_calibration(replace(calibration, curves=CURVES), folder / "calibration")
    plans = {"plans": {"unet": plan(0.9, "unet.conv_in", "unet.mid_block.resnets.0.conv1")}}
    write_engine(folder / "fp.engine", model="tiny")
    hostile = {"bits": "w8a8", "method": "maxmin", "model": "tiny", "build": plans, "synthetic": True}
    write_engine(folder / f"{HOSTILE_ENGINE}.engine", 0.97, 0.01, **hostile)
    write_pictures(folder / "lr", folder / "hr", {"one.png": (14, 12), HOSTILE: (40, 37)})
    stages = {"resize": 1.0, "encoder": 10.0, "unet": 20.0, "decoder": 30.0, "blend": 1.0, "color_fix": 2.0}
    engine = {"median_ms": 64.0, "p99_ms": 70.0, "stages_ms": stages, "opened_bytes": 3 << 20, "bits": "fp"}
    values = [{"path": "elsewhere/fp.engine", **engine}, {"path": "demo", "target": "torch", **engine}]
    (folder / "bench.json").write_text(json.dumps({"engines": values, "warnings": ["int8 loses"]}))
    return folder


def make_report(sources: Path, model: Path) -> Made:
    """Report on everything at once, into all.html."""
    result = invoke(
        *(sources / "calibration", sources / f"{HOSTILE_ENGINE}.engine", sources / "fp.engine"),
        *("--images", sources / "lr", "--hr", sources / "hr", "--calibration-images", sources / "lr"),
        *("--model", model, "--bench", sources / "bench.json", "-o", sources / "all.html", "--json", "-q"),
    )
    assert result.exit_code == 0, result.output
    text = (sources / "all.html").read_text(encoding="utf-8")
    return Made(sources, text, Page(text), json.loads(result.stdout))
