"""Kinds of pictures that need care: 16 bits a channel, inks, AVIF. Kept exactly, or said."""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, ImageCms, features

from intsr.errors import ImageError
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.vips import vips
from intsr.runtime.pictures.writer import write_image


def _save(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)  # type: ignore[arg-type]
    return path


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png16(path: Path, values: np.ndarray, transparent: tuple[int, ...] = ()) -> Path:
    """(H, W, 1 to 4) uint16. transparent: a colour that is, as PNG has it without an alpha channel."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))
    header += _chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    body = _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + _chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (300, 7, channels), np.uint16)
    path = _png16(tmp_path / "deep.png", values)
    loaded, info = read_image(path), read_header(path)
    colours = values[..., : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(loaded.pixels, colours[..., 0] if channels < 3 else colours)
    assert (info.bits, info.channels, info.has_alpha) == (16, colours.shape[2], channels % 2 == 0)
    assert loaded.pixels.dtype == np.uint16
    assert loaded.notes == ()
    if channels % 2:
        assert loaded.alpha is None
    else:
        assert loaded.alpha is not None
        np.testing.assert_array_equal(loaded.alpha, values[..., -1])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_transparent_colour(tmp_path: Path, channels: int) -> None:
    values = np.full((4, 5, channels), 7000, np.uint16)
    values[1, 2] = 260
    loaded = read_image(_png16(tmp_path / "a.png", values, (260,) * channels))
    expected = np.full((4, 5), 65535)
    expected[1, 2] = 0
    assert loaded.alpha is not None
    np.testing.assert_array_equal(loaded.alpha, expected)
    np.testing.assert_array_equal(loaded.pixels, values[..., 0] if channels == 1 else values)


def test_cmyk_by_its_profile_or_by_rule_of_thumb(tmp_path: Path, photo: np.ndarray) -> None:
    inks = Image.fromarray(photo).convert("CMYK")
    by_rule = np.asarray(inks.convert("RGB"))
    without = read_image(_save(tmp_path / "a.tif", inks))
    np.testing.assert_array_equal(without.pixels, by_rule)
    assert "no ICC profile" in without.notes[0]
    broken = read_image(_save(tmp_path / "b.tif", inks, icc_profile=b"no profile" * 20))
    np.testing.assert_array_equal(broken.pixels, by_rule)
    assert "ICC profile is broken" in broken.notes[0]
    assert broken.metadata.icc_profile == b""
    of_light = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = read_image(_save(tmp_path / "c.tif", inks, icc_profile=of_light))
    assert "ICC profile is broken" in other.notes[0]


def test_cmyk_with_a_profile_that_works(tmp_path: Path, photo: np.ndarray) -> None:
    profile = cmyk_profile()
    inks = Image.fromarray(np.dstack([photo, photo[..., 0] // 4]), "CMYK")
    loaded = read_image(_save(tmp_path / "a.tif", inks, icc_profile=profile))
    assert loaded.notes == ("CMYK became sRGB by its ICC profile",)
    assert loaded.metadata.icc_profile == b""
    source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    expected = ImageCms.profileToProfile(inks, source, target, intent, "RGB", flags=flags)
    np.testing.assert_array_equal(loaded.pixels, np.asarray(expected))
    assert np.abs(loaded.pixels.astype(int) - np.asarray(inks.convert("RGB"))).mean() > 1


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
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = [(b"desc", text), (b"A2B0", lut), (b"A2B1", lut), (b"wtpt", white)]
    offset, entries, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags:
        body += bytes(-len(body) % 4)
        entries += name + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body
    head = struct.pack(">I4sI", offset + len(bodies), b"test", 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    head = (head + bytes(28)).ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + bodies


def test_avif(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "a.avif", Image.fromarray(photo), quality=100, subsampling="4:4:4")
    loaded = read_image(path)
    assert np.abs(loaded.pixels.astype(int) - photo).mean() < 1
    assert (loaded.alpha, loaded.notes) == (None, ())
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(ImageError, match="AVIF, which this Pillow does not read"):
        read_image(path)


def test_avif_of_more_bits_is_noted(tmp_path: Path, photo: np.ndarray) -> None:
    values = photo.astype(np.uint16).tobytes()
    image = vips().Image.new_from_memory(values, photo.shape[1], photo.shape[0], 3, "ushort")
    image.copy(interpretation="rgb16").heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=10)
    assert "10 or 12 bits a channel became 8" in read_image(tmp_path / "a.avif").notes[0]


@pytest.mark.parametrize("name", [b"scan[1]", b"caf\xe9", "café ☕".encode()])
def test_any_name_of_a_file(tmp_path: Path, name: bytes) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for suffix in (b".png", b".tif", b".jpg", b".webp", b".avif", b".bmp"):
        path = tmp_path / os.fsdecode(name + suffix)
        pixels = values.astype(np.uint16) * 257 if suffix in (b".png", b".tif") else values
        write_image(path, pixels, None, ImageMetadata())
        assert read_image(path).pixels.shape == pixels.shape
        assert [item.name for item in tmp_path.iterdir()] == [path.name]
        path.unlink()


@pytest.mark.parametrize("read", [read_header, read_image])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    with pytest.raises(ImageError, match="not a regular file"):
        read(path)


def _packed_tiff(values: np.ndarray) -> bytes:
    """(H, W) in [0, 4095], W even: two values in three bytes, the high bits first."""
    height, width = values.shape
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    pixels = packed.astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(pixels)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


def test_packed_12_bit_grey_reaches_from_black_to_white(tmp_path: Path) -> None:
    values = np.arange(4096).reshape(64, 64)
    (tmp_path / "a.tif").write_bytes(_packed_tiff(values))
    loaded = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.pixels, np.rint(values * (65535 / 4095)))
    assert (loaded.pixels.dtype, loaded.notes, read_header(tmp_path / "a.tif").bits) == (np.uint16, (), 16)


@pytest.mark.parametrize(("bits", "level", "noise"), [(1, 1, 0), (2, 3, 0x0100), (4, 1, 0), (8, 3, 0x0100)])
def test_transparent_level_of_grey_of_few_bits(tmp_path: Path, bits: int, level: int, noise: int) -> None:
    """noise: in the bits that do not count."""
    most = 2**bits - 1
    values = np.arange(32) % (most + 1)
    row = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 2, bits, 0, 0, 0, 0))
    head += _chunk(b"tRNS", struct.pack(">H", level + noise))
    body = _chunk(b"IDAT", zlib.compress((b"\0" + row) * 2)) + _chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    loaded = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded.pixels, np.tile(values * 255 // most, (2, 1)))
    np.testing.assert_array_equal(loaded.alpha, np.tile(np.where(values == level, 0, 255), (2, 1)))


@pytest.mark.parametrize("alpha", [0, 1])
def test_empty_transparency_of_a_bmp_is_none(tmp_path: Path, photo: np.ndarray, alpha: int) -> None:
    """With a mask for it in the header: some programs announce it, and write nothing there."""
    pixels = np.dstack([photo[..., ::-1], np.zeros(photo.shape[:2], np.uint8)])
    pixels[0, 0, 3] = alpha
    height, width = photo.shape[:2]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, pixels.size, 0, 0, 0, 0) + masks
    header = header.ljust(108, b"\0")
    path = tmp_path / "a.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + 108 + pixels.size, 0, 0, 14 + 108) + header + pixels.tobytes())
    loaded = read_image(path)
    np.testing.assert_array_equal(loaded.pixels, photo)
    if alpha:
        np.testing.assert_array_equal(loaded.alpha, pixels[..., 3])
        assert loaded.notes == ()
    else:
        assert loaded.alpha is None
        assert loaded.notes == ("its transparency is 0 everywhere, and was taken for none",)


def test_a_picture_of_another_kind_is_called_by_its_name(tmp_path: Path) -> None:
    kinds = {
        b"GIF89a\1\0\1\0\0\0\0": "a GIF",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "a HEIC",
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": "a HEIC",
        b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL",
        b"8BPS\0\1": "a Photoshop",
        b"\0\0\0\x18ftypcrx ": "a camera raw",
        b"FUJIFILMCCD-RAW ": "a camera raw",
    }
    for start, kind in kinds.items():
        (tmp_path / "a.png").write_bytes(start + bytes(100))
        for read in (read_header, read_image):
            with pytest.raises(ImageError, match=f"{kind} file, which is not read; expected .* convert it to PNG"):
                read(tmp_path / "a.png")
