"""Exact numbers out of pictures of every kind, and one line for every kind of broken file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.pictures.rgb8 import read_pixels

RNG = np.random.default_rng(3)
PNG_GREY, PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 4, 6


def _write_png16(path: Path, components: np.ndarray, kind: int) -> Path:
    """(H, W) or (H, W, C) uint16; Pillow cannot write 16-bit colour itself."""
    height, width = components.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in components)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_eight_bit_colour_is_read_as_it_is(tmp_path, suffix):
    pixels = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    got = read_pixels(path)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, pixels)


def test_grey_stays_two_dimensional(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)
    Image.fromarray(pixels > 127).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "b.png"), (pixels > 127) * 255.0)


def test_palette_gives_its_colours(tmp_path):
    pixels = RNG.integers(0, 2, (5, 7, 3), np.uint8) * 255
    Image.fromarray(pixels).quantize(8).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("kind", [PNG_GREY, PNG_RGB])
def test_sixteen_bit_components_keep_their_fractions(tmp_path, kind):
    values = RNG.integers(0, 65536, (5, 7) if kind == PNG_GREY else (5, 7, 3), np.uint16)
    np.testing.assert_allclose(read_pixels(_write_png16(tmp_path / "a.png", values, kind)), values / 257, rtol=1e-15)


def test_sixteen_bit_tiff_of_either_byte_order(tmp_path):
    values = RNG.integers(0, 65536, (5, 7), np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_pixels(tmp_path / "a.tif"), values / 257)
    Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    np.testing.assert_allclose(read_pixels(tmp_path / "b.tif"), values / 257)


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels[..., :3])
    pixels[2, 3, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="transparent pixels"):
        read_pixels(tmp_path / "a.png")
    grey = np.stack([pixels[..., 0], np.full((5, 7), 255, np.uint8)], -1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "grey.png"), pixels[..., 0])


def test_sixteen_bit_alpha(tmp_path):
    values = RNG.integers(0, 65536, (5, 7, 4), np.uint16)
    values[..., 3] = 65535
    path = _write_png16(tmp_path / "a.png", values, PNG_RGBA)
    np.testing.assert_allclose(read_pixels(path), values[..., :3] / 257, rtol=1e-15)
    np.testing.assert_allclose(read_pixels(_write_png16(path, values[..., 2:], PNG_GREY_ALPHA)), values[..., 2] / 257)
    values[3, 3, 3] -= 1
    with pytest.raises(ImageError, match="transparent pixels"):
        read_pixels(_write_png16(path, values, PNG_RGBA))


def test_orientation_is_applied(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", [PNG_GREY, PNG_RGB])
def test_broken_files_are_one_line(tmp_path, kind):
    values = RNG.integers(0, 65536, (64, 64) if kind == PNG_GREY else (64, 64, 3), np.uint16)
    path = _write_png16(tmp_path / "a.png", values, kind)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError) as caught:
        read_pixels(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
