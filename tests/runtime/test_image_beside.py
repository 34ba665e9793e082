"""What formats keep in ways of their own: density, comments, IPTC, text, the meaning of colours. Kept, or said."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, IptcImagePlugin, PngImagePlugin

from intsr.runtime.pictures.formats.avif import avif_has_gain_map, code_points_from_avif
from intsr.runtime.pictures.metadata import beside as image_beside
from intsr.runtime.pictures.metadata.xmp import GAIN_MAP_NOTE
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.row_pipe import png_chunk
from intsr.runtime.pictures.write_array import notes_for_output, write_image

ALL = (".png", ".jpg", ".tif", ".webp", ".avif", ".bmp")
WITH_DENSITY = (".png", ".jpg", ".tif", ".bmp")
SRGB = b"\0\0\2\0test\2\x40\0\0mntrRGB XYZ " + bytes(100)


def _again(path: Path, target: Path) -> tuple[str, ...]:
    """Read and written; what is said."""
    loaded = read_image(path)
    write_image(target, loaded.pixels, loaded.alpha, loaded.metadata)
    return (*loaded.notes, *notes_for_output(loaded.metadata, target))


@pytest.mark.parametrize("dpi", [(300, 300), (72, 72), (600, 300), (127, 127)])
@pytest.mark.parametrize("suffix", WITH_DENSITY)
@pytest.mark.parametrize("source", [".png", ".jpg", ".bmp", ".tif"])
def test_density_goes_wherever_there_is_a_place(
    tmp_path: Path, photo: np.ndarray, source: str, suffix: str, dpi: tuple[int, int]
) -> None:
    Image.fromarray(photo).save(tmp_path / f"a{source}", dpi=dpi)
    notes = _again(tmp_path / f"a{source}", tmp_path / f"b{suffix}")
    # A TIFF has it in its EXIF, which is kept besides.
    assert [note.split()[0] for note in notes] == (["EXIF,"] if (source, suffix) == (".tif", ".bmp") else [])
    with Image.open(tmp_path / f"b{suffix}") as written:
        # Pillow takes one side of EXIF for both.
        found = written.info["dpi"] if suffix != ".jpg" else written.info["jfif_density"]
    assert found == pytest.approx(dpi, abs=0.02)


def test_density_of_a_jpeg_stays_as_it_is(tmp_path: Path, photo: np.ndarray) -> None:
    for unit, x, y in ((0, 2, 1), (1, 300, 299), (2, 118, 118), (1, 65535, 1)):
        Image.fromarray(photo).save(tmp_path / "a.jpg")
        data = (tmp_path / "a.jpg").read_bytes()
        at = data.index(b"JFIF\0") + 7
        (tmp_path / "a.jpg").write_bytes(data[:at] + struct.pack(">BHH", unit, x, y) + data[at + 5 :])
        _again(tmp_path / "a.jpg", tmp_path / "b.jpg")
        with Image.open(tmp_path / "b.jpg") as written:
            assert (written.info["jfif_unit"], *written.info["jfif_density"]) == (unit, x, y)


def test_density_of_a_jpeg_turns_with_it(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "a.jpg", dpi=(600, 300), exif=exif)
    _again(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.info["jfif_density"] == (300, 600)


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_density_without_a_place_is_said_where_it_is_one(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    for dpi, notes in ((300, 1), (72, 0), (96, 0)):
        Image.fromarray(photo).save(tmp_path / "a.jpg", dpi=(dpi, dpi))
        found = _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        assert [note.startswith("300 dpi dropped") for note in found] == [True] * notes


def _iptc_blocks(data: bytes) -> bytes:
    """A caption, and a small picture of the original."""
    blocks = ((1028, data), (1036, b"thumbnail!"), (1034, b"\1"))
    return b"".join(
        b"8BIM" + struct.pack(">HHI", number, 0, len(body)) + body + b"\0" * (len(body) % 2)
        for number, body in blocks
    )


def _jpeg_with(path: Path, photo: np.ndarray, comment: bytes, iptc: bytes) -> None:
    Image.fromarray(photo).save(path, comment=comment)
    blocks = b"Photoshop 3.0\0" + _iptc_blocks(iptc)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xed" + struct.pack(">H", len(blocks) + 2) + blocks + data[2:])


def test_comment_and_iptc_stay_in_a_jpeg(tmp_path: Path, photo: np.ndarray) -> None:
    _jpeg_with(tmp_path / "a.jpg", photo, b"made by hand", b"\x1c\2\x78\0\7caption")
    assert _again(tmp_path / "a.jpg", tmp_path / "b.jpg") == ()
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.info["comment"] == b"made by hand"
        assert IptcImagePlugin.getiptcinfo(written) == {(2, 120): b"caption"}
        assert set(written.info["photoshop"]) == {1028, 1034}


@pytest.mark.parametrize("suffix", [suffix for suffix in ALL if suffix != ".jpg"])
def test_comment_and_iptc_are_named_elsewhere(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    _jpeg_with(tmp_path / "a.jpg", photo, b"made by hand", b"\x1c\2\x78\0\7caption")
    (note,) = _again(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
    assert note.startswith("comment, IPTC of the JPEG dropped")


def test_iptc_longer_than_a_segment(tmp_path: Path, photo: np.ndarray) -> None:
    """It goes on in the next one, wherever it is cut."""
    data = b"".join(b"\x1c\2\x78" + struct.pack(">H", 30000) + bytes([number]) * 30000 for number in range(4))
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    whole, blocks = (tmp_path / "a.jpg").read_bytes(), _iptc_blocks(data)
    parts = [b"Photoshop 3.0\0" + blocks[at : at + 50001] for at in range(0, len(blocks), 50001)]
    segments = b"".join(b"\xff\xed" + struct.pack(">H", len(part) + 2) + part for part in parts)
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segments + whole[2:])
    _again(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        found = [body for name, body in written.applist if name == "APP13"]
    assert data in b"".join(body.removeprefix(b"Photoshop 3.0\0") for body in found)
    assert b"thumbnail!" not in b"".join(found)


@pytest.mark.parametrize("broken", [b"8BIM\4\4\0\0\xff\xff\xff\xff", b"8BIM\4\4\xff", b"8BIM", b"nothing"])
def test_broken_blocks_of_photoshop_cost_only_themselves(tmp_path: Path, photo: np.ndarray, broken: bytes) -> None:
    _jpeg_with(tmp_path / "a.jpg", photo, b"made by hand", b"\x1c\2\x78\0\7caption")
    data = (tmp_path / "a.jpg").read_bytes()
    whole = b"Photoshop 3.0\0" + _iptc_blocks(b"\x1c\2\x78\0\7caption")
    segment = b"\xff\xed" + struct.pack(">H", len(whole + broken) + 2) + whole + broken
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2 + 4 + len(whole) :])
    _again(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        assert IptcImagePlugin.getiptcinfo(written) == {(2, 120): b"caption"}


def _texts() -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_text("parameters", "a cat, Steps: 20")
    found.add_text("workflow", "{" + "x" * 5000 + "}", zip=True)
    found.add_itxt("Title", "Tïtle ☕", "de", "Tïtel")
    found.add_text("Software", "something")
    return found


def test_text_stays_in_a_png_and_is_named_elsewhere(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", pnginfo=_texts())
    assert _again(tmp_path / "a.png", tmp_path / "b.png") == ()
    with Image.open(tmp_path / "b.png") as written, Image.open(tmp_path / "a.png") as original:
        assert list(written.text.items()) == list(original.text.items())  # type: ignore[attr-defined]
        assert (written.text["Title"].lang, written.text["Title"].tkey) == ("de", "Tïtel")  # type: ignore[attr-defined]
    (note,) = _again(tmp_path / "a.png", tmp_path / "b.jpg")
    assert note == "text of the PNG dropped (parameters, workflow, Title): JPEG has no such thing"


def test_text_behind_the_pixels_of_a_png_is_read_and_broken_text_is_not(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    packed = zlib.compress(b"text")
    late = [
        png_chunk(b"tEXt", b"late\0yes"),
        png_chunk(b"zTXt", b"packed\0\0" + packed),
        png_chunk(b"tEXt", b"no keyword's end"),
        png_chunk(b"tEXt", b"\0no keyword"),
        png_chunk(b"tEXt", b"k" * 80 + b"\0too long"),
    ]
    (tmp_path / "a.png").write_bytes(data[:-12] + b"".join(late) + data[-12:])
    assert _again(tmp_path / "a.png", tmp_path / "b.png") == ()
    made = (tmp_path / "b.png").read_bytes()
    assert b"no keyword" not in made and b"too long" not in made
    with Image.open(tmp_path / "b.png") as written:
        # In front of the pixels: the header alone says it.
        assert {"late": "yes", "packed": "text"}.items() <= written.info.items()


def test_too_much_text_is_said(tmp_path: Path, photo: np.ndarray) -> None:
    found = PngImagePlugin.PngInfo()
    for name in "abcde":
        found.add_text(name, "x" * 1_000_000)
    Image.fromarray(photo).save(tmp_path / "a.png", pnginfo=found)
    (note,) = _again(tmp_path / "a.png", tmp_path / "b.png")
    assert note.startswith("text of the PNG was dropped: more than")
    with Image.open(tmp_path / "b.png") as written:
        assert [*written.text] == ["a", "b", "c", "d"]  # type: ignore[attr-defined]


def _avif(path: Path, photo: np.ndarray, primaries: int, transfer: int, **settings: bytes) -> Path:
    Image.fromarray(photo).save(path, quality=100, **settings)  # type: ignore[arg-type]
    data = path.read_bytes()
    assert data.count(b"colrnclx") == 1
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :])
    return path


@pytest.mark.parametrize(
    ("primaries", "transfer", "name"), [(12, 13, "Display P3 with sRGB"), (9, 16, "BT.2020 with PQ")]
)
def test_colours_of_an_avif_go_into_a_png_and_are_named_elsewhere(
    tmp_path: Path, photo: np.ndarray, primaries: int, transfer: int, name: str
) -> None:
    path = _avif(tmp_path / "a.avif", photo, primaries, transfer)
    assert _again(path, tmp_path / "b.png") == ()
    data = (tmp_path / "b.png").read_bytes()
    assert data.index(png_chunk(b"cICP", bytes((primaries, transfer, 0, 1)))) < data.index(b"IDAT")
    for suffix in (".jpg", ".tif", ".webp", ".avif", ".bmp"):
        (note,) = _again(path, tmp_path / f"b{suffix}")
        assert note.startswith(f"colours of {name} will be taken for sRGB") and "write a .png" in note


@pytest.mark.parametrize(("primaries", "transfer"), [(1, 13), (2, 2), (1, 2), (2, 13)])
def test_colours_that_are_those_of_srgb_are_not_worth_a_word(
    tmp_path: Path, photo: np.ndarray, primaries: int, transfer: int
) -> None:
    path = _avif(tmp_path / "a.avif", photo, primaries, transfer)
    assert read_image(path).metadata.png_chunks == ()


def test_a_profile_stands_above_the_colours_of_an_avif(tmp_path: Path, photo: np.ndarray) -> None:
    path = _avif(tmp_path / "a.avif", photo, 12, 13, icc_profile=SRGB)
    assert code_points_from_avif(path) == bytes((12, 13, 0, 1))
    metadata = read_image(path).metadata
    assert (metadata.png_chunks, metadata.icc_profile) == ((), SRGB)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


@pytest.mark.parametrize("wide", [False, True])
def test_the_colours_are_those_of_the_primary_item(tmp_path: Path, wide: bool) -> None:
    """An item of another kind, such as a gain map's, may stand in front."""
    other, own = (
        _box(b"colr", b"nclx" + struct.pack(">HHHB", *colours)) for colours in ((9, 16, 9, 0), (12, 13, 6, 0))
    )
    number, item = (">H", ">I") if wide else (">B", ">H")
    essential = 0x8000 if wide else 0x80
    entries = [(1, (1, 2)), (7, (3, 1))]
    associations = b"".join(
        struct.pack(item, name) + bytes([len(found)]) + b"".join(struct.pack(number, essential | at) for at in found)
        for name, found in entries
    )
    ipma = _box(b"ipma", bytes((wide, 0, 0, wide)) + struct.pack(">I", len(entries)) + associations)
    primary = _box(b"pitm", bytes((wide, 0, 0, 0)) + struct.pack(item, 7))
    properties = _box(b"iprp", _box(b"ipco", _box(b"ispe", bytes(12)) + other + own) + ipma)
    # The second item's properties are the third and the first.
    meta = _box(b"meta", bytes(4) + primary + properties)
    path = tmp_path / "a.avif"
    path.write_bytes(_box(b"ftyp", b"avif") + meta)
    assert code_points_from_avif(path) == bytes((12, 13, 0, 1))
    for end in range(len(path.read_bytes())):
        (tmp_path / "cut.avif").write_bytes(path.read_bytes()[:end])
        assert code_points_from_avif(tmp_path / "cut.avif") in (b"", bytes((12, 13, 0, 1)), bytes((9, 16, 0, 1)))


def test_a_gain_map_is_an_item_of_an_avif(tmp_path: Path) -> None:
    for kinds, expected in (((b"av01",), False), ((b"av01", b"tmap"), True)):
        items = b"".join(_box(b"infe", b"\2\0\0\0\0\1\0\0" + kind + b"\0") for kind in kinds)
        meta = _box(b"meta", bytes(4) + _box(b"iinf", bytes(4) + struct.pack(">H", len(kinds)) + items))
        (tmp_path / "a.avif").write_bytes(_box(b"ftyp", b"avif") + meta + _box(b"mdat", b"tmap"))
        assert avif_has_gain_map(tmp_path / "a.avif") == expected


def test_a_gain_map_of_an_avif_is_named(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo).save(tmp_path / "a.avif")
    assert read_image(tmp_path / "a.avif").notes == ()
    monkeypatch.setattr(image_beside, "avif_has_gain_map", lambda path: True)
    assert read_image(tmp_path / "a.avif").notes == (GAIN_MAP_NOTE,)


def test_an_iso_gain_map_is_named(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    data, body = (tmp_path / "a.jpg").read_bytes(), b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"
    segment = b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    (note,) = read_image(tmp_path / "a.jpg").notes
    assert note.startswith("the HDR gain map was dropped")
