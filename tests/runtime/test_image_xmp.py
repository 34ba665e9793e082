"""XMP that fits the enlarged picture, and is still XML."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from intsr.runtime.pictures.metadata import xmp_for_size
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.writer import write_image

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
HEAD = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" '
)
TAIL = b"</rdf:Description></rdf:RDF></x:xmpmeta>"


def _xmp(attributes: bytes = b"", elements: bytes = b"") -> bytes:
    return HEAD + attributes + b' dc:source="kept">' + elements + TAIL


def _described(xmp: bytes) -> dict[str, str]:
    """Attributes and elements without their namespaces, read by a parser of XML."""
    (found,) = ElementTree.fromstring(xmp).iter(f"{RDF}Description")
    made = {**found.attrib, **{item.tag: (item.text or "").strip() for item in found}}
    return {name.partition("}")[2]: value for name, value in made.items()}


@pytest.mark.parametrize(
    ("attributes", "elements", "expected"),
    [
        (b'tiff:Orientation="6"', b"", {}),
        (b"tiff:Orientation = ' 6 '\n", b"", {}),
        (b"", b"<tiff:Orientation>\n 6 </tiff:Orientation >", {}),
        (b"tiff:ImageWidth='30' tiff:ImageLength = \"20\"", b"", {"ImageWidth": "8", "ImageLength": "9"}),
        (
            b"",
            b"<exif:PixelXDimension>30</exif:PixelXDimension><exif:PixelYDimension> 20\n</exif:PixelYDimension>",
            {"PixelXDimension": "8", "PixelYDimension": "9"},
        ),
    ],
)
def test_orientation_goes_and_sides_are_those_of_the_file(
    tmp_path: Path, photo: np.ndarray, attributes: bytes, elements: bytes, expected: dict[str, str]
) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", xmp=_xmp(attributes, elements))
    metadata = read_image(tmp_path / "a.jpg").metadata
    for suffix in (".jpg", ".png", ".tif", ".webp", ".avif"):
        write_image(tmp_path / f"b{suffix}", photo[:9, :8], None, metadata)
        with Image.open(tmp_path / f"b{suffix}") as written:
            found = written.info.get("xmp") or written.info["XML:com.adobe.xmp"].encode()
        assert _described(found) == {"source": "kept"} | expected


def test_what_only_looks_like_it_stays() -> None:
    xmp = _xmp(b'tiff:Orientations="6" dc:tiff.Orientation="7"', b"<exif:SubjectAreas>1</exif:SubjectAreas>")
    assert xmp_for_size(xmp, (3, 4)) == xmp


@pytest.mark.parametrize(
    "part", [b"<tiff:Orientation>", b" ", b"tiff:Orientation=", b"<exif:PixelXDimension> ", b"x:"]
)
def test_hostile_text_comes_to_an_end(part: bytes) -> None:
    """Beginnings without ends: looking for each of them to the last byte would take hours."""
    xmp = part * 20_000
    assert xmp_for_size(xmp, (1, 2)) == xmp
