"""What pictures carry beside their pixels: byte by byte as it is, and one broken part costs no other."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from intsr.runtime.pictures.metadata.exif import (
    EXIF_IFD,
    GPS_IFD,
    INTEROPERABILITY_IFD,
    Directory,
    Entry,
    directory_bytes,
)
from intsr.runtime.pictures.metadata.fields import ImageMetadata, exif_directory
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.row_pipe import PNG_SIGNATURE, png_chunk
from intsr.runtime.pictures.write_array import notes_for_output, write_image

ORIENTATION, MAKE, RESOLUTION, COPYRIGHT = 0x0112, 0x010F, 0x011A, 0x8298
ALL = (".png", ".jpg", ".tif", ".webp", ".avif")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" dc:title="t"/></x:xmpmeta>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Of grey by its name: nothing here looks further.
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def _exif(directory: Directory) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + directory_bytes(directory, 8, big=False)


def _text(value: bytes) -> Entry:
    return Entry(2, value + b"\0")


def _camera() -> Directory:
    interoperability: Directory = {1: _text(b"R98"), 2: Entry(7, b"0100")}
    details: Directory = {0x9003: _text(b"2020:01:01 00:00:00"), INTEROPERABILITY_IFD: interoperability}
    return {MAKE: _text(b"Canon"), EXIF_IFD: details}


@pytest.mark.parametrize("source", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("suffix", ALL)
def test_interoperability_of_a_camera_is_kept(tmp_path: Path, photo: np.ndarray, suffix: str, source: str) -> None:
    Image.fromarray(photo).save(tmp_path / f"camera{source}", exif=_exif(_camera()))
    loaded = read_image(tmp_path / f"camera{source}")
    write_image(tmp_path / f"a{suffix}", loaded.pixels, None, loaded.metadata)
    with Image.open(tmp_path / f"a{suffix}") as written:
        found = written.getexif()
        assert dict(found.get_ifd(INTEROPERABILITY_IFD)) == {1: "R98", 2: b"0100"}
        assert found.get_ifd(EXIF_IFD)[0x9003] == "2020:01:01 00:00:00"
    assert loaded.notes == ()


def test_a_pointer_that_leads_nowhere_is_dropped_and_said(tmp_path: Path, photo: np.ndarray) -> None:
    details: Directory = {0x9003: _text(b"2020:01:01 00:00:00"), INTEROPERABILITY_IFD: Entry(4, b"\xf0\xff\0\0")}
    exif = _exif({MAKE: _text(b"Canon"), EXIF_IFD: details})
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    loaded = read_image(tmp_path / "a.jpg")
    assert loaded.notes == ("EXIF is broken in part: dropped 0xA005",)
    expected: Directory = {MAKE: _text(b"Canon"), EXIF_IFD: {0x9003: _text(b"2020:01:01 00:00:00")}}
    assert exif_directory(loaded.metadata.exif) == (expected, ())


@pytest.mark.parametrize("suffix", ALL)
def test_broken_exif_from_a_caller_costs_no_picture_and_is_said(
    tmp_path: Path, photo: np.ndarray, suffix: str
) -> None:
    path, metadata = tmp_path / f"a{suffix}", ImageMetadata(b"no exif at all")
    write_image(path, photo, None, metadata)
    assert read_image(path).metadata.exif == b""
    assert notes_for_output(metadata, path) == ("EXIF is broken and was dropped (no TIFF header)",)


ODD: dict[str, Directory] = {
    "resolution as text": {RESOLUTION: _text(b"300")},
    "negative resolution": {RESOLUTION: Entry(10, struct.pack("<ii", -300, 1))},
    "make as a number": {MAKE: Entry(3, b"\5\0")},
    "latitude as text": {GPS_IFD: {2: _text(b"50")}},
    "infinite exposure": {EXIF_IFD: {0x829A: Entry(5, bytes(8))}},
    "unknown double": {EXIF_IFD: {0xC001: Entry(12, struct.pack("<d", 1e300))}},
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
def test_an_odd_tag_costs_neither_orientation_nor_xmp(
    tmp_path: Path, photo: np.ndarray, odd: Directory, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    exif = _exif({COPYRIGHT: _text(b"me"), ORIENTATION: Entry(3, b"\6\0"), **odd})
    metadata = ImageMetadata(exif, xmp=XMP)
    # The writer of the project embeds what it is given.
    write_image(path, photo, None, metadata)
    loaded = read_image(path)
    assert loaded.pixels.shape[:2] == (photo.shape[1], photo.shape[0])
    assert exif_directory(loaded.metadata.exif) == ({COPYRIGHT: _text(b"me"), **odd}, ())
    assert loaded.metadata.xmp == XMP.replace(b' tiff:Orientation="6"', b"")
    assert loaded.notes == ()


def test_a_broken_tag_costs_only_itself(tmp_path: Path, photo: np.ndarray) -> None:
    exif = _exif({COPYRIGHT: _text(b"somebody"), ORIENTATION: Entry(3, b"\6\0"), 0x9C9B: Entry(1, b"t\0i\0t\0")})
    # The last value lies about its length.
    at = exif.index(struct.pack("<HHI", 0x9C9B, 1, 6))
    exif = exif[: at + 4] + struct.pack("<I", 60000) + exif[at + 8 :]
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    loaded = read_image(tmp_path / "a.jpg")
    assert loaded.pixels.shape[:2] == (photo.shape[1], photo.shape[0])
    assert exif_directory(loaded.metadata.exif)[0] == {COPYRIGHT: _text(b"somebody")}
    assert loaded.notes == ("EXIF is broken in part: dropped 0x9C9B",)


@pytest.mark.parametrize("value", [Entry(3, b"\6\0\6\0"), Entry(1, b"\6"), Entry(4, b"\6\0\0\0")])
def test_orientation_of_another_type(tmp_path: Path, photo: np.ndarray, value: Entry) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", exif=_exif({ORIENTATION: value}))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.rot90(photo, -1))


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("name", ["© 2020 José".encode(), "José".encode("latin1")])
def test_text_in_any_encoding_stays(tmp_path: Path, photo: np.ndarray, name: bytes, suffix: str) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=_exif({COPYRIGHT: _text(name)}))
    write_image(tmp_path / f"b{suffix}", photo, None, read_image(tmp_path / "a.jpg").metadata)
    assert name + b"\0" in (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_what_describes_is_kept_and_what_stores_is_not(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    described: Directory = {
        0x013C: _text(b"host computer"),
        0x4746: Entry(3, b"\5\0"),
        0x9C9B: Entry(1, "title".encode("utf-16le")),
    }
    stored: Directory = {0x0153: Entry(3, b"\3\0"), 0x0111: Entry(4, b"\1\0\0\0"), 33550: Entry(12, bytes(24))}
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=_exif({**described, **stored}))
    metadata = read_image(tmp_path / "a.jpg").metadata
    assert exif_directory(metadata.exif) == (described, ())
    write_image(tmp_path / f"b{suffix}", photo, None, metadata)
    assert exif_directory(read_image(tmp_path / f"b{suffix}").metadata.exif) == (described, ())


def test_exif_as_long_as_a_jpeg_holds_is_kept_without_a_note(tmp_path: Path, photo: np.ndarray) -> None:
    room = 65533 - len(_exif({COPYRIGHT: _text(bytes(5))})) + 5
    # Values begin at even places.
    metadata = ImageMetadata(_exif({COPYRIGHT: _text(b"x" * (room - 1))}))
    assert 65528 <= len(metadata.exif) <= 65533
    assert notes_for_output(metadata, tmp_path / "a.jpg") == ()
    write_image(tmp_path / "a.jpg", photo, None, metadata)
    assert read_image(tmp_path / "a.jpg").metadata == metadata


@pytest.mark.parametrize("suffix", ALL)
def test_profile_of_grey_stays_with_grey(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path, metadata = tmp_path / f"a{suffix}", ImageMetadata(icc_profile=GREY_PROFILE)
    write_image(path, photo[..., 0], None, metadata)
    becomes_colour = suffix in (".webp", ".avif")
    notes = notes_for_output(metadata, path)
    assert read_image(path).metadata.icc_profile == (b"" if becomes_colour else GREY_PROFILE)
    assert [note.split(":")[0] for note in notes] == ["ICC was dropped"] * becomes_colour
    assert notes_for_output(ImageMetadata(icc_profile=SRGB), path) == ()


CHUNKS = (
    (b"gAMA", struct.pack(">I", 100000)),
    (b"cICP", bytes((9, 16, 0, 1))),
    (b"pHYs", struct.pack(">IIB", 11811, 5905, 1)),
)


def _png_with(path: Path, picture: np.ndarray, chunks: tuple[tuple[bytes, bytes], ...], exif: bytes = b"") -> None:
    Image.fromarray(picture).save(path, exif=exif)
    data, head = path.read_bytes(), len(PNG_SIGNATURE) + 25
    path.write_bytes(data[:head] + b"".join(png_chunk(*chunk) for chunk in chunks) + data[head:])


def test_chunks_of_png_stay_in_png_and_are_named_elsewhere(tmp_path: Path, photo: np.ndarray) -> None:
    _png_with(tmp_path / "a.png", photo, CHUNKS)
    loaded = read_image(tmp_path / "a.png")
    assert loaded.metadata.png_chunks == CHUNKS
    write_image(tmp_path / "b.png", photo, None, loaded.metadata)
    data = (tmp_path / "b.png").read_bytes()
    assert [data[: data.index(b"IDAT")].count(png_chunk(*chunk)) for chunk in CHUNKS] == [1, 1, 1]
    assert data.count(b"pHYs") == 1
    assert notes_for_output(loaded.metadata, Path("b.png")) == ()
    values = "gAMA of the PNG dropped: TIFF has no such thing"
    colours = "colours of BT.2020 with PQ will be taken for sRGB: TIFF cannot say so; write a .png"
    assert notes_for_output(loaded.metadata, Path("b.tif")) == (values, colours)
    density = "300x150 dpi dropped: WEBP has no place for it"
    assert density in notes_for_output(loaded.metadata, Path("b.webp"))


def test_usual_chunks_of_png_are_not_worth_a_note(tmp_path: Path, photo: np.ndarray) -> None:
    _png_with(tmp_path / "a.png", photo, ((b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0")))
    metadata = read_image(tmp_path / "a.png").metadata
    assert len(metadata.png_chunks) == 2
    assert notes_for_output(metadata, Path("b.bmp")) == ()


def test_chunks_below_a_profile_are_left_out(tmp_path: Path, photo: np.ndarray) -> None:
    metadata = ImageMetadata(icc_profile=SRGB, png_chunks=CHUNKS)
    write_image(tmp_path / "a.png", photo, None, metadata)
    assert b"gAMA" not in (tmp_path / "a.png").read_bytes()
    assert read_image(tmp_path / "a.png").metadata.png_chunks == CHUNKS[1:]


def test_density_turns_with_the_picture(tmp_path: Path, photo: np.ndarray) -> None:
    _png_with(tmp_path / "a.png", photo, CHUNKS[2:], _exif({ORIENTATION: Entry(3, b"\6\0")}))
    expected = ((b"pHYs", struct.pack(">IIB", 5905, 11811, 1)),)
    assert read_image(tmp_path / "a.png").metadata.png_chunks == expected


def test_directories_that_name_each_other_end_soon() -> None:
    """A thousand pointers in a thousand pointers: each is followed once."""
    head = struct.pack("<HHII", EXIF_IFD, 4, 1, 8)
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 3000) + head * 3000 + bytes(4)
    directory, _ = exif_directory(exif)
    assert list(directory) == [EXIF_IFD]


def test_xmp_in_hexadecimal_is_read(tmp_path: Path, photo: np.ndarray) -> None:
    """As some programs write it into a PNG; what is no hexadecimal costs nothing else."""
    for digits, expected in ((XMP.hex(), XMP.replace(b' tiff:Orientation="6"', b"")), ("words", b"")):
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type xmp", f"\nxmp\n    {len(XMP)}\n{digits}\n")
        Image.fromarray(photo).save(tmp_path / "a.png", pnginfo=text)
        assert read_image(tmp_path / "a.png").metadata == ImageMetadata(xmp=expected)
