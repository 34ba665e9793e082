"""Kinds of pictures that need care: 16 bits a channel, inks, AVIF. Kept exactly, or said."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fuzz_pictures import deep_png, png_chunk, png_from_rows
from PIL import AvifImagePlugin, Image, ImageCms, features
from PIL.PngImagePlugin import PngInfo

from intsr.errors import ImageError
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.vips import vips
from intsr.runtime.pictures.writer import notes_for_output, write_image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit(tmp_path: Path, channels: int) -> None:
    values, path = np.random.default_rng(0).integers(0, 65536, (300, 7, channels), np.uint16), tmp_path / "a.png"
    path.write_bytes(deep_png(values))
    loaded, info = read_image(path), read_header(path)
    assert loaded.pixels.dtype == np.uint16
    np.testing.assert_array_equal(loaded.pixels, values[..., 0] if channels < 3 else values[..., :3])
    assert (info.bits, info.channels, info.has_alpha) == (16, 1 if channels < 3 else 3, channels % 2 == 0)
    assert loaded.notes == ()
    if channels % 2:
        assert loaded.alpha is None
    else:
        np.testing.assert_array_equal(loaded.alpha, values[..., -1])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_transparent_colour(tmp_path: Path, channels: int) -> None:
    values = np.full((4, 5, channels), 7000, np.uint16)
    values[1, 2] = 260
    chunk = png_chunk(b"tRNS", struct.pack(f">{channels}H", *(260,) * channels))
    (tmp_path / "a.png").write_bytes(deep_png(values, chunk))
    loaded = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.alpha, np.where(values[..., 0] == 260, 0, 65535))
    np.testing.assert_array_equal(loaded.pixels, values[..., 0] if channels == 1 else values)


@pytest.mark.parametrize(("bits", "level", "noise"), [(1, 1, 0), (2, 3, 0x0100), (4, 1, 0), (8, 3, 0x0100)])
def test_transparent_level_of_grey_of_few_bits(tmp_path: Path, bits: int, level: int, noise: int) -> None:
    """noise: in the bits that do not count."""
    most = 2**bits - 1
    values = np.arange(32) % (most + 1)
    row = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes()
    chunk = png_chunk(b"tRNS", struct.pack(">H", level + noise))
    (tmp_path / "a.png").write_bytes(png_from_rows([row, row], 32, bits, 0, chunk))
    loaded = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.pixels, np.tile(values * 255 // most, (2, 1)))
    np.testing.assert_array_equal(loaded.alpha, np.tile(np.where(values == level, 0, 255), (2, 1)))


@pytest.mark.parametrize(
    ("gamma", "code_points", "starts"),
    [(45455, 1, ()), (100000, 1, ("gamma dropped: ",)), (45455, 9, ("cICP of the PNG was dropped",))],
)
def test_other_colours_of_a_png_are_named(
    tmp_path: Path, photo: np.ndarray, gamma: int, code_points: int, starts: tuple[str, ...]
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    data = path.read_bytes()
    chunks = png_chunk(b"gAMA", struct.pack(">I", gamma)) + png_chunk(b"cICP", bytes((code_points, 13, 0, 1)))
    path.write_bytes(data[:33] + chunks + data[33:])
    loaded = read_image(path)
    notes = (*loaded.notes, *notes_for_output(loaded.metadata, path))
    assert len(notes) == len(starts) and all(note.startswith(starts) for note in notes)


ORIENTATION, ARTIST = 0x0112, 0x013B
EXIF = Image.Exif()
EXIF[ORIENTATION], EXIF[ARTIST] = 6, "somebody"
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation='6'/>"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("exif", EXIF.tobytes(), ImageMetadata(exif=EXIF.tobytes())),
        ("APP1", EXIF.tobytes(), ImageMetadata(exif=EXIF.tobytes())),
        ("xmp", XMP, ImageMetadata(xmp=XMP)),
        ("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP, ImageMetadata(xmp=XMP)),
        ("xmp", None, ImageMetadata()),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_metadata_of_a_png_in_hexadecimal(
    tmp_path: Path, photo: np.ndarray, kind: str, body: bytes | None, *, expected: ImageMetadata, late: bool
) -> None:
    """As ImageMagick and exiftool write it, before the pixels or behind them. None: no hexadecimal."""
    text, words = PngInfo(), body.hex() if body else "words"
    profile = f"Raw profile type {kind}\0\n{kind}\n    {len(words) // 2}\n{words}\n"
    text.add(b"tEXt", profile.encode(), after_idat=late)
    Image.fromarray(photo).save(tmp_path / "a.png", pnginfo=text)
    loaded, header = read_image(tmp_path / "a.png"), read_header(tmp_path / "a.png")
    assert loaded.metadata == expected
    np.testing.assert_array_equal(loaded.pixels, np.rot90(photo, -1) if expected.exif else photo)
    assert loaded.pixels.shape[:2] == (header.height_px, header.width_px)


OF_LIGHT = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (b"", "it has no ICC profile"),
        (b"no profile" * 20, "its ICC profile is broken"),
        (OF_LIGHT, "its ICC profile is broken"),
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk_by_rule_of_thumb(tmp_path: Path, photo: np.ndarray, suffix: str, profile: bytes, why: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photo).convert("CMYK").save(path, icc_profile=profile)
    loaded = read_image(path)
    with Image.open(path) as inks:
        np.testing.assert_array_equal(loaded.pixels, np.asarray(inks.convert("RGB")))
    assert loaded.notes == (f"CMYK became RGB by rule of thumb: {why}",)
    assert loaded.metadata.icc_profile == b""


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk_with_a_profile_that_works(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    profile, path = cmyk_profile(), tmp_path / f"a{suffix}"
    Image.fromarray(np.dstack([photo, photo[..., 0] // 4]), "CMYK").save(path, icc_profile=profile)
    loaded = read_image(path)
    assert loaded.notes == ("CMYK became sRGB by its ICC profile",)
    assert loaded.metadata.icc_profile == b""
    source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    with Image.open(path) as inks:
        expected = ImageCms.profileToProfile(inks, source, target, intent, "RGB", flags=flags)
        assert np.abs(loaded.pixels.astype(int) - np.asarray(inks.convert("RGB"))).mean() > 1
    np.testing.assert_array_equal(loaded.pixels, np.asarray(expected))


def cmyk_profile() -> bytes:
    """A small output profile: a table of 2^4 corners from inks to Lab, darker with each ink."""
    corners = itertools.product((0, 1), repeat=4)
    lab = [(0.95 * (1 - (0.3 * c + 0.25 * m + 0.1 * y)) * (1 - 0.9 * k), c, m, y) for c, m, y, k in corners]
    table = b"".join(
        bytes((int(light * 255), 128 + 40 * m - 40 * c, 128 + 60 * y - 30 * c)) for light, c, m, y in lab
    )
    identity = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    white = struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = [(b"desc", text), (b"A2B0", lut), (b"A2B1", lut), (b"wtpt", b"XYZ \0\0\0\0" + white)]
    offset, entries, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags:
        body += bytes(-len(body) % 4)
        entries += name + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body
    head = struct.pack(">I4sI", offset + len(bodies), b"test", 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    head = ((head + bytes(28)).ljust(68, b"\0") + white).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + entries + bodies


def test_avif(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.avif"
    Image.fromarray(photo).save(path, quality=100, subsampling="4:4:4")
    loaded = read_image(path)
    assert np.abs(loaded.pixels.astype(int) - photo).mean() < 1
    assert (loaded.alpha, loaded.notes) == (None, ())
    image = vips().Image.new_from_memory(
        photo.astype(np.uint16).tobytes(), photo.shape[1], photo.shape[0], 3, "ushort"
    )
    image.copy(interpretation="rgb16").heifsave(str(path), compression="av1", bitdepth=10)
    assert read_image(path).notes == ("10 or 12 bits a channel became 8: AVIF is read in no other way",)
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(ImageError, match="AVIF, which this Pillow does not read"):
        read_image(path)
    with pytest.raises(ImageError, match="this Pillow has no AVIF"):
        write_image(path, photo, None, ImageMetadata())


@pytest.mark.parametrize("suffix", [b".png", b".tif", b".jpg", b".webp", b".avif", b".bmp"])
def test_any_name_of_a_file(tmp_path: Path, photo: np.ndarray, suffix: bytes) -> None:
    pixels = photo.astype(np.uint16) * 257 if suffix in (b".png", b".tif") else photo
    for name in (b"scan[1]", b"caf\xe9", "café ☕".encode()):
        path = tmp_path / os.fsdecode(name + suffix)
        write_image(path, pixels, None, ImageMetadata())
        assert read_image(path).pixels.shape == pixels.shape
        assert [item.name for item in tmp_path.iterdir()] == [path.name]
        path.unlink()


@pytest.mark.parametrize("read", [read_header, read_image])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read(tmp_path / "a.png")


def test_packed_12_bit_grey_reaches_from_black_to_white(tmp_path: Path) -> None:
    values = np.arange(4096).reshape(64, 64)
    # Two values in three bytes, the high bits first.
    first, second = values.reshape(-1, 2).T
    pixels = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    (tmp_path / "a.tif").write_bytes(head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))
    loaded = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.pixels, np.rint(values * (65535 / 4095)))
    assert (loaded.pixels.dtype, loaded.notes, read_header(tmp_path / "a.tif").bits) == (np.uint16, (), 16)


@pytest.mark.parametrize("alpha", [0, 1])
def test_empty_transparency_of_a_bmp_is_none(tmp_path: Path, photo: np.ndarray, alpha: int) -> None:
    """With a mask for it in the header: some programs announce it, and write nothing there."""
    pixels = np.dstack([photo[..., ::-1], np.zeros(photo.shape[:2], np.uint8)])
    pixels[0, 0, 3] = alpha
    height, width = photo.shape[:2]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, pixels.size, 0, 0, 0, 0) + masks
    head = b"BM" + struct.pack("<IHHI", 14 + 108 + pixels.size, 0, 0, 14 + 108)
    (tmp_path / "a.bmp").write_bytes(head + header.ljust(108, b"\0") + pixels.tobytes())
    loaded = read_image(tmp_path / "a.bmp")
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert loaded.notes == (() if alpha else ("its transparency is 0 everywhere, and was taken for none",))
    if alpha:
        np.testing.assert_array_equal(loaded.alpha, pixels[..., 3])
    else:
        assert loaded.alpha is None


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"GIF89a\1\0\1\0\0\0\0", "a GIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"\0\0\0\x18ftypcrx ", "a camera raw"),
        (b"FUJIFILMCCD-RAW ", "a camera raw"),
    ],
)
def test_a_picture_of_another_kind_is_called_by_its_name(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(start + bytes(100))
    with pytest.raises(ImageError, match=f"{kind} file, which is not read; expected .* convert it to PNG"):
        read_image(tmp_path / "a.png")
