"""EXIF of a camera that fits the enlarged picture: its byte order, and numbers that were of the original."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.runtime.pictures.metadata.exif import (
    EXIF_IFD,
    GPS_IFD,
    INTEROPERABILITY_IFD,
    Directory,
    Entry,
    directory_bytes,
)
from intsr.runtime.pictures.metadata.fields import exif_directory
from intsr.runtime.pictures.metadata.xmp import GAIN_MAP_NOTE
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.write_array import write_image

ORIENTATION, MAKE = 0x0112, 0x010F
ALL = (".png", ".jpg", ".tif", ".webp", ".avif")


def _exif(directory: Directory) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + directory_bytes(directory, 8, big=False)


def _text(value: bytes) -> Entry:
    return Entry(2, value + b"\0")


def _big_endian_exif(text: str) -> bytes:
    comment = Entry(7, b"UNICODE\0" + text.encode("utf-16-be"))
    details: Directory = {0x9286: comment, 0xA002: Entry(3, b"\x07\0"), 0xA302: Entry(7, b"\0\2\0\1\7\7")}
    gps: Directory = {1: _text(b"N"), 2: Entry(5, struct.pack("<6I", 10, 1, 20, 1, 30, 7))}
    directory: Directory = {MAKE: _text(b"Acme"), EXIF_IFD: details, GPS_IFD: gps}
    return b"Exif\0\0MM\0*\0\0\0\x08" + directory_bytes(directory, 8, False, ">")


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("suffix", ALL)
def test_wide_text_of_a_big_endian_camera_can_be_read(
    tmp_path: Path, photo: np.ndarray, suffix: str, source: str
) -> None:
    """Its bytes have no type: they are in the order of the EXIF, whichever that is."""
    Image.fromarray(photo).save(tmp_path / f"camera{source}", exif=_big_endian_exif("hällo"))
    loaded = read_image(tmp_path / f"camera{source}")
    write_image(tmp_path / f"a{suffix}", loaded.pixels, None, loaded.metadata)
    with Image.open(tmp_path / f"a{suffix}") as written:
        found = written.getexif()
        details, gps = found.get_ifd(EXIF_IFD), found.get_ifd(GPS_IFD)
    assert found.endian == ("<" if suffix == ".tif" else ">")
    encoding = "utf-16-le" if found.endian == "<" else "utf-16-be"
    assert details[0x9286][8:].decode(encoding) == "hällo"
    assert struct.unpack(f"{found.endian}2H2B", details[0xA302]) == (2, 1, 7, 7)
    assert (found[MAKE], details[0xA002], gps[2]) == ("Acme", photo.shape[1], (10.0, 20.0, 30 / 7))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_big_endian_tiff_keeps_what_describes_it(tmp_path: Path, photo: np.ndarray, bits: int) -> None:
    """EXIF in its order, density, and what its XMP says; of either depth, which two libraries read."""
    pixels = photo[:1, :4].astype(np.uint8 if bits == 8 else np.uint16)
    stored = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    layout = [(256, 4), (257, 1), (259, 1), (262, 2), (273, 8), (277, 3), (278, 1), (279, len(stored))]
    directory: Directory = {tag: Entry(4, struct.pack("<I", value)) for tag, value in layout}
    directory |= exif_directory(_big_endian_exif("hällo"))[0]
    directory[258] = Entry(3, struct.pack("<3H", bits, bits, bits))
    directory |= {282: Entry(5, struct.pack("<II", 300, 1)), 283: Entry(5, struct.pack("<II", 300, 1))}
    directory[700] = Entry(1, b"<x:xmpmeta hdrgm:Version='1.0'/>")
    place = 8 + len(stored)
    head = b"MM\0*" + struct.pack(">I", place)
    (tmp_path / "a.tif").write_bytes(head + stored + directory_bytes(directory, place, False, ">"))
    loaded = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.notes == (GAIN_MAP_NOTE,)
    write_image(tmp_path / "b.png", loaded.pixels, None, loaded.metadata)
    with Image.open(tmp_path / "b.png") as written:
        found = written.getexif()
        assert found.endian == ">"
        assert found.get_ifd(EXIF_IFD)[0x9286][8:].decode("utf-16-be") == "hällo"
    assert loaded.metadata.png_chunks == ((b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),)


@pytest.mark.parametrize("orientation", [1, 6])
def test_places_and_sizes_of_the_original_do_not_stay(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    interoperability: Directory = {1: _text(b"R98"), 0x1001: Entry(3, b"\7\0"), 0x1002: Entry(3, b"\7\0")}
    details: Directory = {
        0x9214: Entry(3, bytes(8)),
        0xA214: Entry(3, bytes(4)),
        0xA003: Entry(3, b"\7\0"),
        INTEROPERABILITY_IFD: interoperability,
    }
    exif = _exif({EXIF_IFD: details, ORIENTATION: Entry(3, bytes((orientation, 0)))})
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    loaded = read_image(tmp_path / "a.jpg", 2)
    write_image(tmp_path / "b.jpg", loaded.pixels.repeat(2, 0).repeat(2, 1), None, loaded.metadata)
    with Image.open(tmp_path / "b.jpg") as written:
        found = written.getexif()
        width, height = written.size
    assert (width, height) == tuple(
        2 * side for side in (photo.shape[1::-1] if orientation == 1 else photo.shape[:2])
    )
    assert dict(found.get_ifd(INTEROPERABILITY_IFD)) == {1: "R98", 0x1001: width, 0x1002: height}
    assert set(found.get_ifd(EXIF_IFD)) - {INTEROPERABILITY_IFD} == {0xA003}
    assert found.get_ifd(EXIF_IFD)[0xA003] == height
