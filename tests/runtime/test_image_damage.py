"""Small damage that costs nothing of the picture is read and said; what costs some of it is an error."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzz_pictures import saved
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from intsr.errors import ImageError
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.writer import write_image

ORIENTATION = 0x0112


def _with_wrong_checksum(data: bytes, wanted: bytes) -> bytes:
    made, at = bytearray(data), 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == wanted:
            made[at + 8 + length] ^= 1
        at += 12 + length
    return bytes(made)


@pytest.mark.parametrize("name", [b"tEXt", b"iTXt", b"zTXt", b"pHYs", b"eXIf"])
def test_a_wrong_checksum_beside_the_picture_costs_that_part(tmp_path: Path, photo: np.ndarray, name: bytes) -> None:
    """In front of the pixels and behind them; the others are there."""
    path, text, exif = tmp_path / "a.png", PngInfo(), Image.Exif()
    text.add_text("Title", "early")
    text.add_itxt("XML:com.adobe.xmp", "<early/>", zip=True)
    text.add(b"zTXt", b"Comment\0\0" + zlib.compress(b"behind"), after_idat=True)
    exif[ORIENTATION] = 6
    Image.fromarray(photo).save(path, pnginfo=text, dpi=(127, 127), exif=exif)
    path.write_bytes(_with_wrong_checksum(path.read_bytes(), name))
    loaded, header = read_image(path), read_header(path)
    upright = photo if name == b"eXIf" else np.rot90(photo, -1)
    np.testing.assert_array_equal(loaded.pixels, upright)
    assert (header.height_px, header.width_px) == upright.shape[:2]
    assert loaded.notes == (f"parts of the PNG with a wrong checksum were left out: {name.decode()}",)
    found = {b"pHYs": loaded.metadata.dpi, b"eXIf": loaded.metadata.exif, b"iTXt": loaded.metadata.xmp}
    assert [key for key, value in found.items() if not value] == [name] * (name in found)


def test_a_wrong_checksum_in_16_bits(tmp_path: Path, photo: np.ndarray) -> None:
    """Which another library decodes."""
    path, pixels = tmp_path / "a.png", photo.astype(np.uint16) * 257
    write_image(path, pixels, None, ImageMetadata())
    path.write_bytes(_with_wrong_checksum(path.read_bytes(), b"pHYs"))
    loaded = read_image(path)
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.notes == ("parts of the PNG with a wrong checksum were left out: pHYs",)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_wrong_checksum_of_the_picture_is_an_error(tmp_path: Path, photo: np.ndarray, name: bytes) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo).quantize(50).save(path)
    path.write_bytes(_with_wrong_checksum(path.read_bytes(), name))
    with pytest.raises(ImageError):
        read_image(path)


def test_transparency_with_a_wrong_checksum_is_left_out_and_said(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path, transparency=tuple(int(value) for value in photo[5, 5]))
    assert read_image(path).alpha is not None
    path.write_bytes(_with_wrong_checksum(path.read_bytes(), b"tRNS"))
    loaded = read_image(path)
    assert (loaded.alpha, read_header(path).has_alpha) == (None, False)
    assert loaded.notes == ("parts of the PNG with a wrong checksum were left out: tRNS",)


JPEGS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"mode": "L"}, {"mode": "CMYK"}]


def _jpeg(photo: np.ndarray, mode: str = "RGB", **settings: object) -> bytes:
    return saved(Image.fromarray(photo).convert(mode), "JPEG", **settings)


@pytest.mark.parametrize("settings", JPEGS)
@pytest.mark.parametrize("missing", [1, 2, 4, 8, 20, 600])
def test_a_jpeg_that_ends_early(tmp_path: Path, photo: np.ndarray, settings: dict[str, object], missing: int) -> None:
    """Without its end mark it is read; where it lacks some of its picture it is an error."""
    path, data = tmp_path / "a.jpg", _jpeg(photo, **settings)
    path.write_bytes(data)
    whole = read_image(path)
    path.write_bytes(data[:-missing])
    try:
        loaded = read_image(path)
    except ImageError as error:
        assert missing > 2 and "truncated" in str(error)
    else:
        # The last blocks reach beyond the picture, and their ends may say nothing.
        assert missing <= 8
        np.testing.assert_array_equal(loaded.pixels, whole.pixels)
        assert loaded.notes == (*whole.notes, "the end mark of the JPEG is missing; the picture is whole")


def test_a_progressive_jpeg_without_its_last_scans_is_an_error(tmp_path: Path, photo: np.ndarray) -> None:
    """Each scan is whole, so that the picture looks whole, only coarser."""
    data = _jpeg(photo, progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 3
    for start in scans[1:]:
        # Tables for the scan stand in front of it.
        table = data.rfind(b"\xff\xc4", 0, start)
        end = table if table > 0 and b"\xff\xda" not in data[table:start] else start
        (tmp_path / "a.jpg").write_bytes(data[:end])
        with pytest.raises(ImageError, match="truncated"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("views", [2, 3])
def test_other_views_are_noted(tmp_path: Path, photo: np.ndarray, views: int) -> None:
    image = Image.fromarray(photo)
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.transpose(0)] * (views - 1))
    loaded = read_image(tmp_path / "a.jpg")
    assert loaded.notes == (f"only the first of {views} pictures in the file was read",)
    assert np.abs(loaded.pixels.astype(int) - photo).mean() < 5


def test_smaller_ones_of_the_same_view_are_not_noted(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.resize((30, 20))])
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    # The list of pictures, 16 bytes each; the second becomes one for small screens.
    at = data.index(b"MPF\0") + 4
    order = "<" if data[at : at + 2] == b"II" else ">"
    (first,) = struct.unpack(order + "I", data[at + 4 : at + 8])
    (count,) = struct.unpack(order + "H", data[at + first : at + first + 2])
    for entry in range(count):
        start = at + first + 2 + 12 * entry
        tag, _, _, value = struct.unpack(order + "HHII", data[start : start + 12])
        if tag == 0xB002:
            data[at + value + 16 : at + value + 20] = struct.pack(order + "I", 0x010001)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg").notes == ()


CASES = Path(__file__).parents[3] / "shared" / "cases"
OUTCOMES = {
    "geo3_16_noextra.tif": "3 channels that are called grey",
    "geo3_8_extra00.tif": "3 channels that are called grey",
    "int16_rgb.tif": "16-bit signed whole numbers",
    "int8.tif": "8-bit signed whole numbers",
    "photo.dng": "camera raw",
    "tif_float32_rgb.tif": "32-bit floating-point numbers",
    "jpg_no_eoi.jpg": "(44, 60, 3): the end mark",
    "jpg_rgb_cmykicc.jpg": "(44, 60, 3): ICC was dropped: it is a profile of CMYK",
    "png_bad_text_crc.png": "(44, 60, 3): parts of the PNG with a wrong checksum were left out: tEXt",
    "png_rawapp1_6.png": "(60, 44, 3): nothing",
    "png_rgb_grayicc.png": "(44, 60, 3): ICC was dropped: it is a profile of GRAY",
    "tif_cmyka.tif": "(44, 60, 3): CMYK became RGB by rule of thumb: it has no ICC profile",
    "tif_thumb_first.tif": "(44, 60, 3): nothing",
}


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize("name", OUTCOMES)
def test_files_that_other_tools_have_got_wrong(name: str) -> None:
    try:
        loaded = read_image(CASES / name)
        outcome = f"{loaded.pixels.shape}: {'; '.join(loaded.notes) or 'nothing'}"
    except ImageError as error:
        outcome = str(error)
    assert OUTCOMES[name] in outcome
