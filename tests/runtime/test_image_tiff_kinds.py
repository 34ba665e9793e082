"""TIFF of every kind: the picture and not its preview, each channel as what it is, or refused by its name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from intsr import memory
from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime.pictures.reader import read_header, read_image

PREVIEW = {"subfiletype": 1}
CFA, LINEAR_RAW = 32803, 34892
INKS_NOTE = "CMYK became RGB by rule of thumb: it has no ICC profile"
BITS_NOTE = "16 bits a channel became 8: this kind of picture is read in no other way"
LAST_LAYOUT = {"tile": (16, 48), "compression": "zlib", "byteorder": ">"}
LAYOUTS = [
    *({}, {"byteorder": ">"}, {"bigtiff": True}, {"byteorder": ">", "bigtiff": True}),
    *({"tile": (32, 32)}, {"compression": "zlib"}, LAST_LAYOUT),
]


def _write(path: Path, pixels: np.ndarray, **settings: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **settings)
    return path


def _write_pages(path: Path, *pages: tuple[np.ndarray, dict[str, Any]], **settings: Any) -> Path:
    with tifffile.TiffWriter(path, **settings) as writer:
        for pixels, about in pages:
            writer.write(pixels, metadata=None, **{"photometric": "rgb"} | about)
    return path


def _channels(photo: np.ndarray, count: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.dstack([photo, photo[::-1], photo[:, ::-1]])[..., :count]
    return values if dtype is np.uint8 else values.astype(dtype) * 257 - values // 3


def _from_inks(values: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(_of_8_bits(values), "CMYK").convert("RGB"))


def _of_8_bits(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else np.rint(values / 257).astype(np.uint8)


def _same_as_info(path: Path) -> Any:
    info, loaded = read_header(path), read_image(path)
    assert (info.height_px, info.width_px) == loaded.pixels.shape[:2]
    assert info.bits == loaded.pixels.dtype.itemsize * 8
    assert (info.channels == 3) == (loaded.pixels.ndim == 3)
    assert loaded.alpha is None or info.has_alpha
    return loaded


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("photometric", "colours", "extra"),
    [
        *(("minisblack", 1, ()), ("miniswhite", 1, ()), ("miniswhite", 1, (2,)), ("minisblack", 1, (0,))),
        *(("rgb", 3, ()), ("rgb", 3, (2,)), ("rgb", 3, (0, 2)), ("rgb", 3, (0, 0, 0, 0))),
        *(("separated", 4, ()), ("separated", 4, (0, 2))),
    ],
)
def test_each_channel_is_what_the_header_says(
    tmp_path: Path, photo: np.ndarray, *, dtype: type, photometric: str, colours: int, extra: tuple[int, ...]
) -> None:
    values = _channels(photo, colours + len(extra), dtype)
    settings = {"extrasamples": extra} if extra else {}
    settings |= {"planarconfig": "contig"} if values.shape[2] > 1 else {}
    expected, alpha = values[..., :colours], values[..., colours + extra.index(2)] if 2 in extra else None
    notes = (f"channels beside the colours were dropped: {extra.count(0)}",) if 0 in extra else ()
    if photometric == "miniswhite":
        expected = np.iinfo(dtype).max - expected
    if colours == 4:
        expected, alpha = _from_inks(expected), None if alpha is None else _of_8_bits(alpha)
        notes += (BITS_NOTE, INKS_NOTE) if dtype is np.uint16 else (INKS_NOTE,)
    for layout in LAYOUTS if extra == (2,) else [LAST_LAYOUT]:
        stored = values[..., 0] if values.shape[2] == 1 else values
        loaded = _same_as_info(_write(tmp_path / "a.tif", stored, photometric=photometric, **settings, **layout))
        np.testing.assert_array_equal(np.atleast_3d(loaded.pixels), expected)
        np.testing.assert_array_equal(loaded.alpha, alpha)
        assert loaded.notes == notes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize(
    ("photometric", "colours", "extra"),
    [("rgb", 3, ()), ("rgb", 3, (2,)), ("separated", 4, ()), ("minisblack", 1, (2,))],
)
def test_channels_apart_are_read_or_refused(
    tmp_path: Path, photo: np.ndarray, *, dtype: type, tile: Any, photometric: str, colours: int, extra: tuple[int]
) -> None:
    values = _channels(photo, colours + len(extra), dtype)
    settings = {"planarconfig": "separate", "tile": tile, "extrasamples": extra or None}
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    path = _write(tmp_path / "a.tif", planes, photometric=photometric, **settings)
    if colours == 1 or (tile and dtype is np.uint16):
        with pytest.raises(ImageError, match="its channels apart; save it with them together"):
            read_image(path)
        return
    loaded, colour = _same_as_info(path), values[..., :colours]
    np.testing.assert_array_equal(loaded.pixels, _from_inks(colour) if colours == 4 else colour)
    np.testing.assert_array_equal(loaded.alpha, values[..., 3] if extra else None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("photometric", "colours"), [("minisblack", 1), ("rgb", 3)])
def test_colours_multiplied_by_their_alpha_are_divided(
    tmp_path: Path, photo: np.ndarray, dtype: type, photometric: str, colours: int
) -> None:
    values, peak = _channels(photo, colours + 1, dtype), np.iinfo(dtype).max
    path = _write(tmp_path / "a.tif", values, photometric=photometric, extrasamples=(1,), planarconfig="contig")
    expected = np.minimum(values[..., :colours] / np.maximum(values[..., colours:], 1).astype(float) * peak, peak)
    assert np.abs(np.atleast_3d(_same_as_info(path).pixels) - expected).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "channels", "photometric", "name"),
    [
        (np.int16, 1, "minisblack", "16-bit signed whole numbers"),
        (np.float16, 1, "minisblack", "16-bit floating-point numbers"),
        (np.complex64, 1, "minisblack", "64-bit complex numbers"),
        (np.uint32, 1, "minisblack", "32-bit grey"),
        (np.uint32, 3, "rgb", "32-bit RGB"),
        (np.uint8, 3, "cielab", "in CIELab"),
        (np.uint16, 3, "minisblack", "3 channels that are called grey"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(
    tmp_path: Path, photo: np.ndarray, *, dtype: type, channels: int, photometric: str, name: str
) -> None:
    values = _channels(photo, channels).astype(dtype)
    stored, planes = (values[..., 0], None) if channels == 1 else (values, "contig")
    path = _write(tmp_path / "a.tif", stored, photometric=photometric, planarconfig=planes)
    with pytest.raises(ImageError, match=name) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: a TIFF ") and "\n" not in str(caught.value)


def _entry(tag: int, value: int) -> bytes:
    """Of a directory: one number of 16 bits."""
    return struct.pack("<HHIH", tag, 3, 1, value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (_entry(262, 2), _entry(263, 2), "a TIFF that does not say what its colours are"),
        (_entry(262, 2), _entry(262, 77), "a TIFF in colours of the kind 77; .*convert it to RGB"),
        (_entry(262, 2), _entry(262, 6), "a TIFF of YCbCr with fewer colours than pixels"),
        (_entry(277, 3), _entry(277, 2), "a TIFF of RGB with 2 channels; expected 3"),
        (_entry(259, 1), _entry(259, 33003), "a TIFF compressed by JPEG 2000; save it anew"),
        (_entry(259, 1), _entry(259, 777), "a TIFF compressed by the method 777; save it anew"),
        # As Nikon's cameras pack what the sensor saw.
        (_entry(259, 1), _entry(259, 34713), "camera raw"),
    ],
)
def test_what_a_header_says_oddly(tmp_path: Path, photo: np.ndarray, old: bytes, new: bytes, message: str) -> None:
    path = _write(tmp_path / "a.tif", photo, photometric="rgb")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ImageError, match=message):
        read_image(path)


@pytest.mark.parametrize("count", [2, 3])
def test_grey_with_no_word_on_other_channels_is_refused(tmp_path: Path, photo: np.ndarray, count: int) -> None:
    values = _channels(photo, count, np.uint16)
    path = _write(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    # ExtraSamples becomes a tag that nobody knows.
    path.write_bytes(path.read_bytes().replace(struct.pack("<HH", 338, 3), struct.pack("<HH", 60338, 3)))
    with pytest.raises(ImageError, match=f"{count} channels that are called grey"):
        read_image(path)


@pytest.mark.parametrize("photometric", [CFA, LINEAR_RAW])
@pytest.mark.parametrize("inside", [True, False])
def test_camera_raw_is_refused_by_its_name(tmp_path: Path, photo: np.ndarray, photometric: int, inside: bool) -> None:
    """Its first directory is a preview; what the sensor saw lies inside of it, or behind."""
    sensor = _channels(photo, 3, np.uint16)[..., 0 if photometric == CFA else slice(None)]
    preview = PREVIEW | ({"subifds": 1} if inside else {})
    _write_pages(tmp_path / "a.tif", (photo[::4, ::4], preview), (sensor, {"photometric": photometric}))
    with pytest.raises(ImageError, match=r"camera raw: .*; develop it first in a raw converter"):
        read_header(tmp_path / "a.tif")


def test_raw_of_a_camera_without_marks_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    """Canon's begins with a preview that does not say so: the directory lies behind the pixels, its mark in front."""
    path = _write(tmp_path / "a.tif", photo, photometric="rgb")
    data = path.read_bytes()
    (at,) = struct.unpack("<I", data[4:8])
    path.write_bytes(data[:4] + struct.pack("<I", len(data)) + b"CR\2\0" + data[12:] + data[at:])
    with pytest.raises(ImageError, match="camera raw"):
        read_image(path)


@pytest.mark.parametrize("layout", [{"byteorder": ">"}, {"bigtiff": True}])
@pytest.mark.parametrize("kind", ["rgb", "rgb16", "palette", "inside", "inside palette", "inside unmarked"])
def test_a_preview_is_not_taken_for_the_picture(
    tmp_path: Path, photo: np.ndarray, layout: dict[str, Any], kind: str
) -> None:
    """The picture is in the second directory, or inside the first."""
    expected = whole = _channels(photo, 3, np.uint16) if kind == "rgb16" else photo
    about = {}
    if kind.endswith("palette"):
        table = np.arange(768, dtype=np.uint16).reshape(3, 256) * 50
        whole, about = photo[..., 0], {"photometric": "palette", "colormap": table}
        expected = table.T[whole] // 256
    preview = {"extratags": [(315, "s", 0, "somebody", True), (274, "H", 1, 6, True)]}
    preview |= ({} if kind == "inside unmarked" else PREVIEW) | ({"subifds": 1} if kind.startswith("inside") else {})
    loaded = _same_as_info(_write_pages(tmp_path / "a.tif", (photo[::4, ::4], preview), (whole, about), **layout))
    np.testing.assert_array_equal(loaded.pixels, np.rot90(expected, -1))
    assert b"somebody" in loaded.metadata.exif
    assert loaded.notes == ()


def test_nothing_but_a_preview_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = _write(tmp_path / "a.tif", photo, photometric="rgb", **PREVIEW)
    new, old = struct.pack("<HHII", 254, 4, 1, 1), struct.pack("<HHIHH", 255, 3, 1, 2, 0)
    for data in (path.read_bytes(), path.read_bytes().replace(new, old)):
        path.write_bytes(data)
        with pytest.raises(ImageError, match="a TIFF with nothing but a preview"):
            read_image(path)


def test_pages_are_noted_and_reduced_ones_are_not(tmp_path: Path, photo: np.ndarray) -> None:
    path, page = tmp_path / "a.tif", (photo, {})
    loaded = read_image(_write_pages(path, page, (photo[::-1], {}), (photo[:, ::-1], {})))
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert loaded.notes == ("only the first of 3 frames was read",)
    note = "only the first of 2 frames was read, of 30x20 pixels; another one has 71x53"
    assert read_image(_write_pages(path, (photo[:20, :30], {}), page)).notes == (note,)
    reduced, mask = (photo[::2, ::2], PREVIEW), (photo[..., 0] > 100, {"subfiletype": 4, "photometric": 4})
    notes = read_image(_write_pages(path, page, reduced, mask, bigtiff=True)).notes
    assert notes == ("a mask for transparency was not read",)


def test_directories_that_lead_in_circles_end(tmp_path: Path, photo: np.ndarray) -> None:
    path = _write(tmp_path / "a.tif", photo, photometric="rgb")
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    data[at + 2 + 12 * count : at + 6 + 12 * count] = struct.pack("<I", at)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path).pixels, photo)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_chain_of_directories_across_one_another_ends_soon(tmp_path: Path, order: str) -> None:
    """Each has many entries, nearly all of them the next one's too: the file is small, and their sum is not."""
    steps, count = 20000, 5000
    records = [(count, 8 + 6 * max(at - 2 * count + 1, 0)) for at in range(steps + 2 * count)]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    (tmp_path / "a.tif").write_bytes(head + b"".join(struct.pack(order + "HI", *record) for record in records))
    with pytest.raises(ImageError, match="a TIFF without a picture"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "compressions"),
    [
        ("1", (None, "group3", "group4", "tiff_lzw")),
        ("P", (None, "tiff_adobe_deflate", "zstd")),
        ("RGB", ("packbits", "lzma")),
    ],
)
def test_compressions(tmp_path: Path, photo: np.ndarray, mode: str, compressions: tuple[str | None, ...]) -> None:
    image = Image.fromarray(photo).convert(mode)
    for compression in compressions:
        image.save(tmp_path / "a.tif", compression=compression)
        expected = np.asarray(image.convert("L" if mode == "1" else "RGB"))
        np.testing.assert_array_equal(_same_as_info(tmp_path / "a.tif").pixels, expected)
    Image.fromarray(photo).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    assert np.abs(_same_as_info(tmp_path / "a.tif").pixels.astype(int) - photo).mean() < 3


@pytest.mark.parametrize("extra", [(), (0, 0, 0, 0, 0)])
def test_the_memory_of_every_kind_is_asked_for(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, extra: tuple[int, ...]
) -> None:
    """A strip may be the whole picture: channels that are dropped take memory too."""
    values = _channels(photo, 3 + len(extra), np.uint16)
    path = _write(tmp_path / "a.tif", values, photometric="rgb", extrasamples=extra or None)
    needed = read_header(path).decode_bytes
    assert needed >= photo.shape[0] * photo.shape[1] * (6 + values.shape[2] * 2)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    with pytest.raises(OutOfMemoryError):
        read_image(path)
