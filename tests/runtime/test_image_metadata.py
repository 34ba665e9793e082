"""What pictures carry beside their pixels: it comes along and fits the new file, or one note names what does not."""

from __future__ import annotations

import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin
from PIL.PngImagePlugin import PngInfo

from intsr.runtime.pictures.metadata import xmp_for_size
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


def _exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[MAKE], exif[ARTIST], exif[ORIENTATION] = "Acme", "somebody", orientation
    details = {WIDTH: 7, HEIGHT: 9, DATE: "2020:02:02 02:02:02", MAKER_NOTE: b"maker", PLACE: (1, 2)}
    exif.get_ifd(EXIF_IFD).update(details)
    exif.get_ifd(GPS_IFD).update({1: "N", 2: (12.0, 30.0, 1.5)})
    return exif


def _again(source: Path, target: Path) -> tuple[str, ...]:
    """Read and written, twice as large; what is said."""
    loaded = read_image(source)
    pixels = loaded.pixels.repeat(2, 0).repeat(2, 1)
    write_image(target, pixels, None, loaded.metadata)
    return (*loaded.notes, *notes_for_output(loaded.metadata, target))


@pytest.mark.parametrize("source", WITH_EXIF)
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_fits_the_new_file(tmp_path: Path, photo: np.ndarray, source: str, orientation: int) -> None:
    """Applied orientation, sides of the file, no thumbnail and no places of the original; all else as it was."""
    Image.fromarray(photo).save(tmp_path / f"a{source}", exif=_exif(orientation).tobytes())
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
    first = struct.pack("<HHHI4sI", 1, MAKE, 2, 4, b"abc\0", 26)
    entries = ((0x103, 3, 6), (0x201, 4, 8 + 18 + 42), (0x202, 4, len(thumbnail)))
    second = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + first + struct.pack("<H", 3) + second + bytes(4) + thumbnail
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


def test_orientation_that_is_there_twice(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = (6, 6)
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.rot90(photo, -1))


@pytest.mark.parametrize(
    ("source", "suffix"), [(".png", ".jpg"), (".jpg", ".tif"), (".tif", ".bmp"), (".bmp", ".png")]
)
def test_resolution_goes_wherever_there_is_a_place(
    tmp_path: Path, photo: np.ndarray, source: str, suffix: str
) -> None:
    """And rows become columns with it."""
    dpi, exif = (600, 300), {} if source == ".bmp" else {"exif": _exif(6)}
    Image.fromarray(photo).save(tmp_path / f"a{source}", dpi=dpi, **exif)
    _again(tmp_path / f"a{source}", tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as written:
        # In a JPEG it is EXIF's, of which Pillow takes one side for both.
        found = written.getexif()
        sides = (found[282], found[283]) if suffix == ".jpg" else written.info["dpi"]
    assert sides == pytest.approx(dpi[::-1] if exif else dpi, abs=0.02)


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
    assert _again(tmp_path / "a.jpg", tmp_path / "b.png")[0].startswith("IPTC dropped: ")
    # In two parts nobody knows what is in which.
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment * 2 + whole[2:])
    assert _again(tmp_path / "a.jpg", tmp_path / "b.jpg")[0].startswith("IPTC dropped: ")


def test_one_note_names_what_is_dropped(tmp_path: Path, photo: np.ndarray) -> None:
    text, image = PngInfo(), Image.fromarray(photo)
    for name in ("parameters", "Software"):
        text.add_text(name, "words")
    image.save(tmp_path / "a.png", exif=_exif(), icc_profile=SRGB, pnginfo=text)
    image.save(tmp_path / "a.jpg", comment=b"by hand")
    reason = "has no place for it, or it is kept in no format"
    for source, target, note in (
        ("a.png", "b.png", f"text dropped: PNG {reason}"),
        ("a.png", "b.bmp", f"EXIF, ICC, text dropped: BMP {reason}"),
        ("a.jpg", "b.jpg", f"comment dropped: JPEG {reason}"),
    ):
        assert _again(tmp_path / source, tmp_path / target) == (note,)


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
    for profile, pixels in ((SRGB, photo), (GREY_PROFILE, photo[..., 0])):
        metadata, dropped = ImageMetadata(icc_profile=profile), pixels.ndim == 2 and suffix in (".webp", ".avif")
        write_image(tmp_path / f"a{suffix}", pixels, None, metadata)
        assert read_image(tmp_path / f"a{suffix}").metadata.icc_profile == (b"" if dropped else profile)
        notes = notes_for_output(metadata, Path(f"a{suffix}"))
        assert [note.split(":")[0] for note in notes] == ["ICC dropped"] * dropped


@pytest.mark.parametrize(
    ("profile", "note"),
    [
        (SRGB[:16] + b"CMYK" + SRGB[20:], "it is a profile of CMYK, and the picture is RGB"),
        (SRGB[:16] + b"Lab " + SRGB[20:], "it is a profile of Lab, and the picture is RGB"),
        (GREY_PROFILE, "it is a profile of GRAY, and the picture is RGB"),
        (SRGB[:-50], "the profile is broken"),
        (b"no profile" * 20, "the profile is broken"),
    ],
)
def test_a_profile_of_other_colours_or_a_broken_one_is_left_out_and_said(
    tmp_path: Path, photo: np.ndarray, profile: bytes, note: str
) -> None:
    for suffix in (".png", ".tif"):
        Image.fromarray(photo).save(tmp_path / f"a{suffix}", icc_profile=profile)
        loaded = read_image(tmp_path / f"a{suffix}")
        assert (loaded.metadata.icc_profile, loaded.notes) == (b"", (f"ICC was dropped: {note}",))


RDF = b"http://www.w3.org/1999/02/22-rdf-syntax-ns#"
HEAD = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="' + RDF + b'"><rdf:Description xmlns:dc="dc" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
)


def _xmp(attributes: bytes = b"", elements: bytes = b"") -> bytes:
    return HEAD + attributes + b' dc:source="kept">' + elements + b"</rdf:Description></rdf:RDF></x:xmpmeta>"


def _described(xmp: bytes) -> dict[str, str]:
    """Attributes and elements without their namespaces, read by a parser of XML."""
    (found,) = ElementTree.fromstring(xmp).iter(f"{{{RDF.decode()}}}Description")
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
def test_xmp_fits_the_new_file(
    tmp_path: Path, photo: np.ndarray, attributes: bytes, elements: bytes, expected: dict[str, str]
) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", xmp=_xmp(attributes, elements))
    metadata = read_image(tmp_path / "a.jpg").metadata
    for suffix in WITH_EXIF:
        write_image(tmp_path / f"b{suffix}", photo[:9, :8], None, metadata)
        with Image.open(tmp_path / f"b{suffix}") as written:
            found = written.info.get("xmp") or written.info["XML:com.adobe.xmp"].encode()
        assert _described(found) == {"source": "kept"} | expected


def test_what_only_looks_like_sides_and_orientation_stays() -> None:
    xmp = _xmp(b'tiff:Orientations="6" dc:tiff.Orientation="7"', b"<exif:SubjectAreas>1</exif:SubjectAreas>")
    assert xmp_for_size(xmp, (3, 4)) == xmp
    # Beginnings without ends: looking for each of them to the last byte would take hours.
    for part in (b"<tiff:Orientation>", b" ", b"tiff:Orientation=", b"<exif:PixelXDimension> ", b"x:"):
        assert xmp_for_size(part * 20_000, (1, 2)) == part * 20_000
