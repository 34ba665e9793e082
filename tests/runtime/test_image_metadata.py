"""What pictures carry beside their pixels: it comes along and fits the new file, or one note names what does not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin
from PIL.PngImagePlugin import PngInfo

from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.writer import notes_for_output, write_image

ORIENTATION, MAKE, ARTIST, COPYRIGHT, EXIF_IFD, GPS_IFD = 0x0112, 0x010F, 0x013B, 0x8298, 0x8769, 0x8825
WIDTH, HEIGHT, DATE, MAKER_NOTE, PLACE = 0xA002, 0xA003, 0x9003, 0x927C, 0x9214
WITH_EXIF = (".png", ".jpg", ".tif", ".webp", ".avif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Of grey by its name: nothing here looks further.
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation='6' tiff:ImageWidth='7'/>"


def _exif(**settings: object) -> Image.Exif:
    exif = Image.Exif()
    exif[MAKE], exif[ARTIST], exif[ORIENTATION] = "Acme", "somebody", settings.get("orientation", 1)
    exif.get_ifd(EXIF_IFD).update(
        {WIDTH: 7, HEIGHT: 9, DATE: "2020:02:02 02:02:02", MAKER_NOTE: b"maker", PLACE: (1, 2)}
    )
    exif.get_ifd(GPS_IFD).update({1: "N", 2: (12.0, 30.0, 1.5)})
    return exif


def _again(source: Path, target: Path) -> tuple[str, ...]:
    """Read and written, twice as large; what is said."""
    loaded = read_image(source)
    pixels = loaded.pixels.repeat(2, 0).repeat(2, 1)
    write_image(target, pixels, None, loaded.metadata)
    return (*loaded.notes, *notes_for_output(loaded.metadata, target))


@pytest.mark.parametrize("source", [".png", ".jpg", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_fits_the_new_file(tmp_path: Path, photo: np.ndarray, source: str, orientation: int) -> None:
    """Applied orientation, sides of the file, no thumbnail and no places of the original; all else as it was."""
    Image.fromarray(photo).save(tmp_path / f"a{source}", exif=_exif(orientation=orientation).tobytes())
    height, width = photo.shape[:2] if orientation == 1 else photo.shape[1::-1]
    for suffix in WITH_EXIF:
        assert _again(tmp_path / f"a{source}", tmp_path / f"b{suffix}") == ()
        with Image.open(tmp_path / f"b{suffix}") as written:
            found = written.getexif()
            details, gps = found.get_ifd(EXIF_IFD), found.get_ifd(GPS_IFD)
            assert written.size == (2 * width, 2 * height)
        assert (found[MAKE], found[ARTIST], found.get(ORIENTATION, 1)) == ("Acme", "somebody", 1)
        assert (details[WIDTH], details[HEIGHT], details[DATE]) == (2 * width, 2 * height, "2020:02:02 02:02:02")
        assert details[MAKER_NOTE] == b"maker" and PLACE not in details
        assert (gps[1], gps[2]) == ("N", (12.0, 30.0, 1.5))


def test_a_thumbnail_does_not_come_along(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    image.resize((16, 12)).save(tmp_path / "thumbnail.jpg")
    thumbnail = (tmp_path / "thumbnail.jpg").read_bytes()
    make = struct.pack("<HHI4s", MAKE, 2, 4, b"abc\0")
    entries = ((0x103, 3, 6), (0x201, 4, 8 + 18 + 42), (0x202, 4, len(thumbnail)))
    second = struct.pack("<H", 3) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0" + make + struct.pack("<I", 26) + second + bytes(4) + thumbnail
    image.save(tmp_path / "a.jpg", exif=exif)
    assert thumbnail in (tmp_path / "a.jpg").read_bytes()
    for suffix in WITH_EXIF:
        _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        found = Image.open(tmp_path / f"b{suffix}").getexif()
        assert found[MAKE] == "abc" and thumbnail not in (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("name", ["© 2020 José".encode(), "José".encode("latin1")])
def test_text_in_any_encoding_stays(tmp_path: Path, photo: np.ndarray, name: bytes) -> None:
    exif = Image.Exif()
    exif[COPYRIGHT] = name
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    for suffix in WITH_EXIF:
        _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        assert name + b"\0" in (tmp_path / f"b{suffix}").read_bytes()
    _again(tmp_path / "b.tif", tmp_path / "c.png")
    assert name + b"\0" in (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("layout", [{"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}])
def test_what_describes_a_tiff_is_read_in_every_layout(tmp_path: Path, photo: np.ndarray, layout: dict) -> None:
    tags = [(ARTIST, "s", 0, "somebody", True), (ORIENTATION, "H", 1, 6, True), (700, "B", len(XMP), XMP, True)]
    settings = {"resolution": (300, 150), "resolutionunit": "INCH", "metadata": None, "extratags": tags}
    tifffile.imwrite(tmp_path / "a.tif", photo, photometric="rgb", iccprofile=SRGB, **settings, **layout)
    loaded = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.pixels, np.rot90(photo, -1))
    assert (loaded.metadata.xmp, loaded.metadata.icc_profile, loaded.metadata.dpi) == (XMP, SRGB, (150, 300))
    assert b"somebody" in loaded.metadata.exif and loaded.notes == ()


@pytest.mark.parametrize(
    "exif",
    [
        b"not a tiff header at all",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\x01\0\x12\x01",
        b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        # A number where there should be text, and a fraction of nothing.
        b"II*\0\x08\0\0\0\x02\0\x0f\x01\x03\0\1\0\0\0\5\0\0\0\x1a\1\5\0\1\0\0\0\x26\0\0\0\0\0\0\0" + bytes(8),
        b"II*\0\x08\0\0\0" + struct.pack("<H", 3000) + struct.pack("<HHII", EXIF_IFD, 4, 1, 8) * 3000 + bytes(4),
    ],
)
def test_broken_exif_costs_no_picture(tmp_path: Path, photo: np.ndarray, exif: bytes) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    for suffix in (*WITH_EXIF, ".bmp"):
        _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        assert read_image(tmp_path / f"b{suffix}").pixels.shape == (2 * photo.shape[0], 2 * photo.shape[1], 3)


def test_exif_that_pillow_cannot_read_is_noted(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(image: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 2 bytes")

    Image.fromarray(photo).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", refuse)
    loaded = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert "EXIF is broken" in loaded.notes[0]


@pytest.mark.parametrize("value", [(6, 6), 6])
def test_orientation_of_another_type(tmp_path: Path, photo: np.ndarray, value: object) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.rot90(photo, -1))


@pytest.mark.parametrize(
    ("source", "suffix"), [(".png", ".jpg"), (".jpg", ".tif"), (".tif", ".bmp"), (".bmp", ".png")]
)
def test_resolution_goes_wherever_there_is_a_place(
    tmp_path: Path, photo: np.ndarray, source: str, suffix: str
) -> None:
    """And rows become columns with it."""
    for dpi, orientation in (((300, 300), 1), ((127, 127), 6), ((600, 300), 6)):
        exif = {} if source == ".bmp" else {"exif": _exif(orientation=orientation)}
        Image.fromarray(photo).save(tmp_path / f"a{source}", dpi=dpi, **exif)
        _again(tmp_path / f"a{source}", tmp_path / f"b{suffix}")
        expected = dpi[::-1] if orientation == 6 and exif else dpi
        with Image.open(tmp_path / f"b{suffix}") as written:
            # In a JPEG it is EXIF's, of which Pillow takes one side for both.
            found = (
                written.getexif() if suffix == ".jpg" else {282: written.info["dpi"][0], 283: written.info["dpi"][1]}
            )
        assert (found[282], found[283]) == pytest.approx(expected, abs=0.02)


def test_resolution_is_not_made_up(tmp_path: Path, photo: np.ndarray) -> None:
    """What has to name some names the usual 72 dpi."""
    Image.fromarray(photo).save(tmp_path / "a.tif", dpi=(0, 300))
    assert read_image(tmp_path / "a.tif").metadata.dpi is None
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        write_image(tmp_path / f"a{suffix}", photo, None, ImageMetadata())
        with Image.open(tmp_path / f"a{suffix}") as written:
            assert written.info.get("dpi", (72, 72)) == pytest.approx((72, 72), abs=0.02)
            assert suffix == ".tif" or not written.getexif()


def test_iptc_stays_in_a_jpeg_and_is_named_elsewhere(tmp_path: Path, photo: np.ndarray) -> None:
    data = b"\x1c\2\x78\0\7caption"
    body = b"Photoshop 3.0\x008BIM" + struct.pack(">HHI", 1028, 0, len(data)) + data
    segment = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert _again(tmp_path / "a.jpg", tmp_path / "b.jpg") == ()
    with Image.open(tmp_path / "b.jpg") as written:
        assert IptcImagePlugin.getiptcinfo(written) == {(2, 120): b"caption"}
    for suffix in (".png", ".tif", ".bmp"):
        (note,) = _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        assert note.startswith("IPTC dropped: ")
    # In two parts nobody knows what is in which.
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment * 2 + whole[2:])
    assert _again(tmp_path / "a.jpg", tmp_path / "b.jpg")[0].startswith("IPTC dropped: ")


def test_one_note_names_what_is_dropped(tmp_path: Path, photo: np.ndarray) -> None:
    text = PngInfo()
    for name in ("parameters", "Software"):
        text.add_text(name, "words")
    tags = {"exif": _exif(), "icc_profile": SRGB, "pnginfo": text}
    Image.fromarray(photo).save(tmp_path / "a.png", **tags)
    (note,) = _again(tmp_path / "a.png", tmp_path / "b.png")
    assert note.startswith("text dropped: ")
    (note,) = _again(tmp_path / "a.png", tmp_path / "b.bmp")
    assert note == "EXIF, ICC, text dropped: BMP has no place for it, or it is kept in no format"
    Image.fromarray(photo).save(tmp_path / "a.jpg", comment=b"by hand")
    assert _again(tmp_path / "a.jpg", tmp_path / "b.jpg")[0].startswith("comment dropped: ")
    Image.fromarray(photo).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for gamma, dropped in ((45455, False), (100000, True)):
        chunk = _chunk(b"gAMA", struct.pack(">I", gamma)) + _chunk(b"cICP", bytes((1, 13, 0, 1)))
        (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
        assert ["gamma dropped" in note for note in _again(tmp_path / "a.png", tmp_path / "b.png")] == [
            True
        ] * dropped


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_metadata_that_a_format_cannot_hold_is_named_and_left_out(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ARTIST] = "x" * 70000
    # A profile says itself how long it is.
    profile = struct.pack(">I", len(SRGB) + 100_000) + SRGB[4:] + bytes(100_000)
    metadata = ImageMetadata(exif.tobytes(), profile, b"<y>" * 24000)
    for suffix, names in ((".jpg", "EXIF, XMP"), (".png", "EXIF"), (".webp", "EXIF")):
        assert notes_for_output(metadata, Path(f"a{suffix}"))[0].startswith(f"{names} dropped: ")
        write_image(tmp_path / f"a{suffix}", photo, None, metadata)
        found = read_image(tmp_path / f"a{suffix}").metadata
        # Of a JPEG, in several segments.
        assert found.icc_profile == profile
        assert found.xmp == (b"" if suffix == ".jpg" else metadata.xmp)


@pytest.mark.parametrize("suffix", WITH_EXIF)
def test_a_profile_stays_as_it_is_where_its_colours_do(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    becomes_colour = suffix in (".webp", ".avif")
    for profile, pixels in ((SRGB, photo), (GREY_PROFILE, photo[..., 0])):
        metadata, dropped = ImageMetadata(icc_profile=profile), becomes_colour and pixels.ndim == 2
        write_image(tmp_path / f"a{suffix}", pixels, None, metadata)
        assert read_image(tmp_path / f"a{suffix}").metadata.icc_profile == (b"" if dropped else profile)
        assert [note.split(":")[0] for note in notes_for_output(metadata, Path(f"a{suffix}"))] == (
            ["ICC dropped"] if becomes_colour and profile is GREY_PROFILE else []
        )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_profile_of_other_colours_or_a_broken_one_is_left_out_and_said(
    tmp_path: Path, photo: np.ndarray, suffix: str
) -> None:
    image = Image.fromarray(photo)
    for of, name in ((b"GRAY", "GRAY"), (b"CMYK", "CMYK"), (b"Lab ", "Lab")):
        image.save(tmp_path / f"a{suffix}", icc_profile=SRGB[:16] + of + SRGB[20:])
        loaded = read_image(tmp_path / f"a{suffix}")
        assert loaded.metadata.icc_profile == b""
        assert loaded.notes == (f"ICC was dropped: it is a profile of {name}, and the picture is RGB",)
    for broken in (SRGB[:-50], b"no profile" * 20):
        image.save(tmp_path / f"a{suffix}", icc_profile=broken)
        assert read_image(tmp_path / f"a{suffix}").notes == ("ICC was dropped: the profile is broken",)


def test_metadata_of_a_png_in_hexadecimal(tmp_path: Path, photo: np.ndarray) -> None:
    """As ImageMagick and exiftool write it; what is no hexadecimal costs nothing else."""
    exif = _exif(orientation=6).tobytes()
    app1 = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    cases = (("exif", exif.hex(), "exif", exif), ("xmp", XMP.hex(), "xmp", XMP), ("APP1", app1.hex(), "xmp", XMP))
    for kind, digits, field, expected in (*cases, ("APP1", exif.hex(), "exif", exif), ("xmp", "words", "xmp", b"")):
        text = PngInfo()
        text.add_text(f"Raw profile type {kind}", f"\n{kind}\n    {len(digits) // 2}\n{digits}\n")
        Image.fromarray(photo).save(tmp_path / "a.png", pnginfo=text)
        loaded = read_image(tmp_path / "a.png")
        assert getattr(loaded.metadata, field) == expected and loaded.metadata.others == ()
        is_turned = loaded.pixels.shape[:2] == photo.shape[1::-1]
        assert is_turned == (b"somebody" in expected)
