"""XMP that fits the enlarged picture, and is still XML."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from intsr.runtime.pictures.metadata.xmp import notes_from_xmp, xmp_for_upright, xmp_with_sizes
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.writer import write_image

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
TIFF, EXIF = "{http://ns.adobe.com/tiff/1.0/}", "{http://ns.adobe.com/exif/1.0/}"
HEAD = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
    b'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" '
    b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" '
)
TAIL = b"</rdf:Description></rdf:RDF></x:xmpmeta>"
LIST = b"<rdf:Seq><rdf:li>1</rdf:li><rdf:li>2</rdf:li></rdf:Seq>"


def _xmp(attributes: bytes = b"", elements: bytes = b"") -> bytes:
    return HEAD + attributes + b' dc:source="kept">' + elements + TAIL


def _described(xmp: bytes) -> dict[str, str]:
    """Attributes and elements, read by a parser of XML."""
    (found,) = ElementTree.fromstring(xmp).iter(f"{RDF}Description")
    made = {**found.attrib, **{item.tag: (item.text or "").strip() for item in found}}
    assert made.pop("{http://purl.org/dc/elements/1.1/}source") == "kept"
    return made


@pytest.mark.parametrize(
    ("attributes", "elements"),
    [
        (b'tiff:Orientation="6"', b""),
        (b"tiff:Orientation='6'", b""),
        (b"tiff:Orientation = ' 6 '\n", b""),
        (b"", b"<tiff:Orientation>6</tiff:Orientation>"),
        (b"", b"<tiff:Orientation>\n 6 </tiff:Orientation >"),
        (b"exif:SubjectArea='1, 2'", b""),
        (b"", b"<exif:SubjectArea>" + LIST + b"</exif:SubjectArea>"),
        (b"", b"<exif:SubjectLocation>" + LIST + b"</exif:SubjectLocation>"),
        (b"hdrgm:Version='1.0'", b"<Container:Directory>" + LIST + b"</Container:Directory>"),
        (b'xmpNote:HasExtendedXMP="0123456789ABCDEF"', b""),
        (b'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1"', b"<hdrgm:Version>1.0</hdrgm:Version>"),
    ],
)
def test_what_belongs_to_the_original_alone_goes(attributes: bytes, elements: bytes) -> None:
    assert _described(_xmp(attributes, elements)) != {}
    assert _described(xmp_for_upright(_xmp(attributes, elements))) == {}


def test_what_only_looks_like_it_stays() -> None:
    xmp = _xmp(b'tiff:Orientations="6" dc:tiff.Orientation="7"', b"<exif:SubjectAreas>1</exif:SubjectAreas>")
    assert xmp_for_upright(xmp) == xmp
    assert xmp_with_sizes(xmp, 3, 4) == xmp
    assert notes_from_xmp(xmp) == ()


@pytest.mark.parametrize(
    ("attributes", "elements"),
    [
        (b"tiff:ImageWidth='30' tiff:ImageLength = \"20\"", b""),
        (b"", b"<exif:PixelXDimension>30</exif:PixelXDimension><exif:PixelYDimension> 20\n</exif:PixelYDimension>"),
    ],
)
def test_sizes_become_those_of_the_file(
    tmp_path: Path, photo: np.ndarray, attributes: bytes, elements: bytes
) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", xmp=_xmp(attributes, elements))
    loaded = read_image(tmp_path / "a.jpg", 4)
    assert sorted(_described(loaded.metadata.xmp).values()) == sorted(str(4 * side) for side in photo.shape[:2])
    for suffix in (".jpg", ".png", ".tif", ".webp", ".avif"):
        write_image(tmp_path / f"b{suffix}", photo[:9, :8], None, loaded.metadata)
        with Image.open(tmp_path / f"b{suffix}") as written:
            found = written.info.get("xmp") or written.info["XML:com.adobe.xmp"].encode()
        names = (f"{TIFF}ImageWidth", f"{TIFF}ImageLength")
        names = names if attributes else (f"{EXIF}PixelXDimension", f"{EXIF}PixelYDimension")
        assert _described(found) == dict(zip(names, ("8", "9"), strict=True))


@pytest.mark.parametrize(
    ("attributes", "note"),
    [
        (b'xmpNote:HasExtendedXMP="0123"', "extended XMP was dropped"),
        (b"hdrgm:Version='1.0'", "the HDR gain map was dropped"),
        (b'GCamera:MicroVideo="1"', "the film of the motion photo was dropped"),
    ],
)
def test_what_does_not_come_along_is_said(tmp_path: Path, photo: np.ndarray, attributes: bytes, note: str) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", xmp=_xmp(attributes))
    (found,) = read_image(tmp_path / "a.jpg").notes
    assert found.startswith(note)


@pytest.mark.parametrize(
    "part",
    [b"<tiff:Orientation>", b" ", b"tiff:Orientation=", b"<Container:Directory ", b"<exif:SubjectArea>", b"x:"],
)
def test_hostile_text_comes_to_an_end(part: bytes) -> None:
    """Beginnings without ends: looking for each of them to the last byte would take hours."""
    xmp = part * 100_000
    assert xmp_with_sizes(xmp_for_upright(xmp), 1, 2) == xmp
    assert notes_from_xmp(xmp) == ()
