"""TIFF of every kind: the picture and not its preview, each channel as what it is, or refused by its name."""

from __future__ import annotations

import struct
from io import BytesIO
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
LAYOUTS = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"byteorder": ">", "bigtiff": True},
    {"tile": (32, 32)},
    {"compression": "zlib"},
    {"tile": (16, 48), "compression": "zlib", "byteorder": ">"},
]


def _write(path: Path, pixels: np.ndarray, **settings: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **settings)
    return path


def _channels(photo: np.ndarray, count: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.dstack([photo, photo[::-1], photo[:, ::-1]])[..., :count]
    return values if dtype is np.uint8 else values.astype(dtype) * 257 - values // 3


def _same_as_info(path: Path) -> Any:
    info, loaded = read_header(path), read_image(path)
    assert (info.height_px, info.width_px) == loaded.pixels.shape[:2]
    assert info.bits == loaded.pixels.dtype.itemsize * 8
    assert (info.channels == 3) == (loaded.pixels.ndim == 3)
    assert loaded.alpha is None or info.has_alpha
    return loaded


KINDS = [
    ("minisblack", 1, ()),
    ("miniswhite", 1, ()),
    ("miniswhite", 1, (2,)),
    ("minisblack", 1, (0,)),
    ("rgb", 3, ()),
    ("rgb", 3, (2,)),
    ("rgb", 3, (0,)),
    ("rgb", 3, (0, 2)),
    ("rgb", 3, (0, 0, 0, 0)),
    ("separated", 4, ()),
    ("separated", 4, (0, 2)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("photometric", "colours", "extra"), KINDS)
def test_each_channel_is_what_the_header_says(
    tmp_path: Path, photo: np.ndarray, dtype: type, photometric: str, colours: int, extra: tuple[int, ...]
) -> None:
    for layout in LAYOUTS if extra == (2,) else LAYOUTS[-1:]:
        _check_kind(tmp_path, photo, layout, dtype, photometric, colours, extra)


def _check_kind(
    tmp_path: Path,
    photo: np.ndarray,
    layout: dict[str, Any],
    dtype: type,
    photometric: str,
    colours: int,
    extra: tuple[int, ...],
) -> None:
    values = _channels(photo, colours + len(extra), dtype)
    settings = {"extrasamples": extra} if extra else {}
    settings |= {"planarconfig": "contig"} if values.shape[2] > 1 else {}
    stored = values[..., 0] if values.shape[2] == 1 else values
    path = _write(tmp_path / "a.tif", stored, photometric=photometric, **settings, **layout)
    loaded = _same_as_info(path)
    expected = values[..., 0] if colours == 1 else values[..., :colours]
    alpha = values[..., colours + extra.index(2)] if 2 in extra else None
    if photometric == "miniswhite":
        expected = np.iinfo(dtype).max - expected
    if colours == 4:
        expected, alpha = (None if part is None else _of_8_bits(part) for part in (expected, alpha))
        expected = np.asarray(Image.fromarray(expected, "CMYK").convert("RGB"))
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert (loaded.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(loaded.alpha, alpha)
    dropped = extra.count(0)
    notes = (f"channels beside the colours were dropped: {dropped}",) if dropped else ()
    if colours == 4:
        bits = "16 bits a channel became 8: this kind of picture is read in no other way"
        notes += (bits, INKS_NOTE) if dtype is np.uint16 else (INKS_NOTE,)
    assert loaded.notes == notes


def _of_8_bits(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else np.rint(values / 257).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize(
    ("photometric", "extra"), [("rgb", ()), ("rgb", (2,)), ("separated", ()), ("minisblack", (2,))]
)
def test_channels_apart_are_read_or_refused(
    tmp_path: Path, photo: np.ndarray, dtype: type, tile: Any, photometric: str, extra: tuple[int, ...]
) -> None:
    colours = {"rgb": 3, "separated": 4, "minisblack": 1}[photometric]
    values = _channels(photo, colours + len(extra), dtype)
    settings = {"extrasamples": extra} if extra else {}
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    path = _write(tmp_path / "a.tif", planes, photometric=photometric, planarconfig="separate", tile=tile, **settings)
    if colours == 1 or (tile and dtype is np.uint16):
        with pytest.raises(ImageError, match="its channels apart; save it with them together"):
            read_image(path)
        return
    loaded = _same_as_info(path)
    expected = values[..., :colours]
    if colours == 4:
        expected = np.asarray(Image.fromarray(_of_8_bits(expected), "CMYK").convert("RGB"))
    np.testing.assert_array_equal(loaded.pixels, expected)
    if extra:
        np.testing.assert_array_equal(loaded.alpha, values[..., 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
def test_colours_multiplied_by_their_alpha_are_divided(
    tmp_path: Path, photo: np.ndarray, dtype: type, colours: int
) -> None:
    values, photometric = _channels(photo, colours + 1, dtype), "rgb" if colours == 3 else "minisblack"
    path = _write(tmp_path / "a.tif", values, photometric=photometric, extrasamples=(1,), planarconfig="contig")
    loaded, peak = _same_as_info(path), np.iinfo(dtype).max
    expected = np.minimum(values[..., :colours] / np.maximum(values[..., colours:], 1).astype(float) * peak, peak)
    assert np.abs(loaded.pixels - np.squeeze(expected, 2 if colours == 1 else ())).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "shape", "settings", "name"),
    [
        (np.int16, (), {"photometric": "minisblack"}, "16-bit signed whole numbers"),
        (np.float16, (), {"photometric": "minisblack"}, "16-bit floating-point numbers"),
        (np.float32, (3,), {"photometric": "rgb"}, "32-bit floating-point numbers"),
        (np.float64, (), {"photometric": "miniswhite"}, "64-bit floating-point numbers"),
        (np.complex64, (), {"photometric": "minisblack"}, "64-bit complex numbers"),
        (np.uint32, (), {"photometric": "minisblack"}, "32-bit grey"),
        (np.uint32, (3,), {"photometric": "rgb"}, "32-bit RGB"),
        (np.uint8, (3,), {"photometric": "cielab"}, "in CIELab"),
        (np.uint8, (3,), {"photometric": 9}, "in ICCLab"),
        (np.uint8, (3,), {"photometric": "minisblack", "planarconfig": "contig"}, "3 channels that are called grey"),
        (np.uint16, (3,), {"photometric": "minisblack", "planarconfig": "contig"}, "3 channels that are called grey"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(
    tmp_path: Path,
    photo: np.ndarray,
    dtype: type,
    shape: tuple[int, ...],
    settings: dict[str, Any],
    name: str,
) -> None:
    values = _channels(photo, *(shape or (1,))).astype(dtype)
    path = _write(tmp_path / "a.tif", values if shape else values[..., 0], **settings)
    with pytest.raises(ImageError, match=name) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: a TIFF ")
    assert "\n" not in str(caught.value)


def test_grey_of_16_bits_with_no_word_on_other_channels_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    """Without ExtraSamples, the second of three bands was taken for transparency."""
    for count in (2, 3):
        values = _channels(photo, count, np.uint16)
        path = _write(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
        data = path.read_bytes()
        # The tag becomes one that nobody knows.
        path.write_bytes(data.replace(struct.pack("<HH", 338, 3), struct.pack("<HH", 60338, 3)))
        with pytest.raises(ImageError, match=f"{count} channels that are called grey"):
            read_image(path)


@pytest.mark.parametrize("photometric", [CFA, LINEAR_RAW])
@pytest.mark.parametrize("inside", [True, False])
def test_camera_raw_is_refused_by_its_name(tmp_path: Path, photo: np.ndarray, photometric: int, inside: bool) -> None:
    """Its first directory is a preview; what the sensor saw lies inside of it, or behind."""
    sensor = _channels(photo, 3, np.uint16)
    sensor = sensor[..., 0] if photometric == CFA else sensor
    with tifffile.TiffWriter(tmp_path / "a.dng") as writer:
        settings = {"subifds": 1} if inside else {}
        writer.write(photo[::4, ::4], photometric="rgb", metadata=None, **PREVIEW, **settings)
        writer.write(sensor, photometric=photometric, metadata=None, subfiletype=0, planarconfig=None)
    (tmp_path / "a.dng").rename(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"camera raw: .*; develop it first in a raw converter") as caught:
        read_header(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)


def test_raw_of_a_camera_without_marks_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    """Canon's begins with a preview that does not say so; Nikon's names its compression."""
    path = _write(tmp_path / "a.tif", photo, photometric="rgb")
    data = path.read_bytes()
    (at,) = struct.unpack("<I", data[4:8])
    # The directory goes behind the pixels, and Canon's mark behind the header.
    moved = data[:4] + struct.pack("<I", len(data)) + b"CR\2\0" + data[12:] + data[at:]
    path.write_bytes(moved)
    with pytest.raises(ImageError, match="camera raw"):
        read_image(path)
    path.write_bytes(data.replace(struct.pack("<HHIH", 259, 3, 1, 1), struct.pack("<HHIH", 259, 3, 1, 34713)))
    with pytest.raises(ImageError, match="camera raw"):
        read_image(path)


@pytest.mark.parametrize("layout", [{"byteorder": ">"}, {"bigtiff": True}])
@pytest.mark.parametrize("kind", ["rgb", "rgb16", "palette", "inside", "inside palette", "inside unmarked"])
def test_a_preview_is_not_taken_for_the_picture(
    tmp_path: Path, photo: np.ndarray, layout: dict[str, Any], kind: str
) -> None:
    """The picture is in the second directory, or inside the first."""
    path, inside = tmp_path / "a.tif", kind.startswith("inside")
    whole, settings = _channels(photo, 3, np.uint16) if kind == "rgb16" else photo, {"photometric": "rgb"}
    if kind.endswith("palette"):
        table = np.arange(768, dtype=np.uint16).reshape(3, 256) * 50
        whole, settings = photo[..., 0], {"photometric": "palette", "colormap": table}
    with tifffile.TiffWriter(path, **layout) as writer:
        marks = {} if kind == "inside unmarked" else PREVIEW
        marks = marks | ({"subifds": 1} if inside else {})
        tag = [(315, "s", 0, "somebody", True), (274, "H", 1, 6, True)]
        writer.write(photo[::4, ::4], photometric="rgb", metadata=None, extratags=tag, **marks)
        writer.write(whole, metadata=None, **settings)
    loaded = _same_as_info(path)
    expected = table.T[whole] // 256 if kind.endswith("palette") else whole
    np.testing.assert_array_equal(loaded.pixels, np.rot90(expected, -1))
    assert b"somebody" in loaded.metadata.exif
    assert loaded.notes == ()


def test_nothing_but_a_preview_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = _write(tmp_path / "a.tif", photo, photometric="rgb", **PREVIEW)
    with pytest.raises(ImageError, match="a TIFF with nothing but a preview"):
        read_image(path)
    old = path.read_bytes().replace(struct.pack("<HHII", 254, 4, 1, 1), struct.pack("<HHIHH", 255, 3, 1, 2, 0))
    path.write_bytes(old)
    with pytest.raises(ImageError, match="a TIFF with nothing but a preview"):
        read_image(path)


def test_pages_are_noted_and_reduced_ones_are_not(tmp_path: Path, photo: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "scan.tif") as writer:
        for page in (photo, photo[:, ::-1], photo[::-1]):
            writer.write(page, photometric="rgb", metadata=None)
    loaded = read_image(tmp_path / "scan.tif")
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert loaded.notes == ("only the first of 3 frames was read",)
    with tifffile.TiffWriter(tmp_path / "larger.tif") as writer:
        writer.write(photo[:20, :30], photometric="rgb", metadata=None)
        writer.write(photo, photometric="rgb", metadata=None)
    note = "only the first of 2 frames was read, of 30x20 pixels; another one has 71x53"
    assert read_image(tmp_path / "larger.tif").notes == (note,)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif", bigtiff=True) as writer:
        writer.write(photo, photometric="rgb", metadata=None)
        writer.write(photo[::2, ::2], photometric="rgb", metadata=None, **PREVIEW)
        mask = photo[..., 0] > 100
        writer.write(mask, photometric=4, metadata=None, subfiletype=4)
    assert read_image(tmp_path / "pyramid.tif").notes == ("a mask for transparency was not read",)


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


def test_palette_and_few_bits(tmp_path: Path, photo: np.ndarray) -> None:
    """As Pillow writes them, in every compression that it has for them."""
    bilevel = Image.fromarray(photo).convert("1")
    for compression in (None, "group3", "group4", "tiff_lzw", "packbits"):
        bilevel.save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(_same_as_info(tmp_path / "a.tif").pixels, np.asarray(bilevel.convert("L")))
    palette = Image.fromarray(photo).quantize(100)
    for compression in (None, "tiff_adobe_deflate", "zstd"):
        palette.save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(_same_as_info(tmp_path / "a.tif").pixels, np.asarray(palette.convert("RGB")))


def test_compressions(tmp_path: Path, photo: np.ndarray) -> None:
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma", "zstd"):
        Image.fromarray(photo).save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(_same_as_info(tmp_path / "a.tif").pixels, photo)
    Image.fromarray(photo).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    assert np.abs(_same_as_info(tmp_path / "a.tif").pixels.astype(int) - photo).mean() < 3
    data = _write(tmp_path / "a.tif", photo, photometric="rgb").read_bytes()
    for number, name in ((33003, "JPEG 2000"), (34887, "LERC"), (777, "the method 777")):
        tag = struct.pack("<HHIH", 259, 3, 1, number)
        (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HHIH", 259, 3, 1, 1), tag))
        with pytest.raises(ImageError, match=f"a TIFF compressed by {name}; save it anew"):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("extra", [(), (0,), (0, 0, 0, 0, 0)])
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
    monkeypatch.setattr(memory, "free_bytes", lambda: needed)
    read_image(path)


def test_the_limit_of_pixels_holds_for_a_picture_behind_its_preview(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(photo[::4, ::4], photometric="rgb", metadata=None, **PREVIEW)
        writer.write(photo, photometric="rgb", metadata=None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.shape[0] * photo.shape[1] // 2)
    with pytest.raises(ImageError, match="more pixels than the limit"):
        read_header(tmp_path / "a.tif")


def test_a_picture_without_colours_named_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    """Taken for a negative before."""
    file = BytesIO()
    Image.fromarray(photo[..., 0]).save(file, "TIFF")
    data = file.getvalue()
    assert struct.pack("<HHIH", 262, 3, 1, 1) in data
    (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 263, 3, 1)))
    with pytest.raises(ImageError, match="does not say what its colours are"):
        read_image(tmp_path / "a.tif")


CASES = Path(__file__).parents[3] / "shared" / "cases"
NAMED = {
    "geo3_16_noextra.tif": "3 channels that are called grey",
    "geo3_8_extra00.tif": "3 channels that are called grey",
    "int16_rgb.tif": "16-bit signed whole numbers",
    "int8.tif": "8-bit signed whole numbers",
    "photo.dng": "camera raw",
    "tif_float32_rgb.tif": "32-bit floating-point numbers",
}
READ = {
    "jpg_no_eoi.jpg": ((44, 60, 3), "end mark"),
    "jpg_rgb_cmykicc.jpg": ((44, 60, 3), "a profile of CMYK"),
    "png_bad_text_crc.png": ((44, 60, 3), "wrong checksum were left out: tEXt"),
    "png_rawapp1_6.png": ((60, 44, 3), ""),
    "png_rgb_grayicc.png": ((44, 60, 3), "a profile of GRAY"),
    "tif_cmyka.tif": ((44, 60, 3), INKS_NOTE),
    "tif_thumb_first.tif": ((44, 60, 3), ""),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize("name", sorted(NAMED | READ))
def test_files_that_other_tools_have_got_wrong(name: str) -> None:
    if name in NAMED:
        with pytest.raises(ImageError, match=NAMED[name]):
            read_image(CASES / name)
        return
    shape, note = READ[name]
    loaded = _same_as_info(CASES / name)
    assert loaded.pixels.shape == shape
    assert note in " ".join(loaded.notes)
    assert bool(note) == bool(loaded.notes)
