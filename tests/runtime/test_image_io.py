"""Pictures of every kind read as they are, and every broken file is one ImageError."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.image_io import read_image, read_info

ORIENTATION, ARTIST = 0x0112, 0x013B


def _save(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_colour_of_every_format(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    settings = {"lossless": True} if suffix == ".webp" else {}
    loaded = read_image(_save(tmp_path / f"a{suffix}", Image.fromarray(photo), **settings))
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert (loaded.alpha, loaded.notes) == (None, ())


def test_content_decides_not_the_name(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(photo).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path).pixels, photo)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey(tmp_path: Path, suffix: str) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    loaded = read_image(_save(tmp_path / f"a{suffix}", Image.fromarray(pixels)))
    assert loaded.pixels.dtype == np.uint16
    np.testing.assert_array_equal(loaded.pixels, pixels)


def test_16_bit_colour_says_that_it_became_8(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    path = tmp_path / "deep.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(range(24)) for _ in range(4))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    loaded = read_image(path)
    assert loaded.pixels.dtype == np.uint8
    assert "16 bits a channel became 8" in loaded.notes[0]


def test_grey_alpha_and_palette_modes(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    grey = image.convert("L")
    assert read_image(_save(tmp_path / "l.png", grey)).pixels.shape == photo.shape[:2]
    assert read_image(_save(tmp_path / "bilevel.png", image.convert("1"))).pixels.ndim == 2
    assert read_image(_save(tmp_path / "p.png", image.quantize(16))).pixels.shape == photo.shape
    assert read_image(_save(tmp_path / "cmyk.jpg", image.convert("CMYK"))).pixels.shape == photo.shape
    transparent = read_image(_save(tmp_path / "la.png", grey.convert("LA")))
    assert transparent.pixels.ndim == 2


def test_alpha_apart_and_opaque_alpha_gone(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = (np.indices(photo.shape[:2]).sum(0) % 256).astype(np.uint8)
    image = Image.fromarray(photo)
    image.putalpha(Image.fromarray(alpha))
    loaded = read_image(_save(tmp_path / "a.png", image))
    np.testing.assert_array_equal(loaded.pixels, photo)
    np.testing.assert_array_equal(loaded.alpha, alpha)
    image.putalpha(255)
    assert read_image(_save(tmp_path / "b.png", image)).alpha is None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, photo: np.ndarray, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "somebody"
    path = _save(tmp_path / f"a{suffix}", Image.fromarray(photo), exif=exif)
    loaded, info = read_image(path), read_info(path)
    turned = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, -1),
        7: photo[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(photo),
    }[orientation]
    np.testing.assert_array_equal(loaded.pixels, turned)
    assert (info.height_px, info.width_px) == turned.shape[:2]
    kept = Image.Exif()
    kept.load(loaded.metadata.exif)
    assert kept.get(ORIENTATION, 1) == 1
    assert kept[ARTIST] == "somebody"


def test_exif_sizes_grow_with_the_picture(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA002] = photo.shape[1]
    path = _save(tmp_path / "a.jpg", Image.fromarray(photo), exif=exif)
    kept = Image.Exif()
    kept.load(read_image(path, upscale_factor=4).metadata.exif)
    assert kept.get_ifd(0x8769)[0xA002] == photo.shape[1] * 4


@pytest.mark.parametrize(
    "exif",
    [
        b"not a tiff header at all",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\x01\0\x12\x01",
        b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
)
def test_broken_exif_does_not_cost_the_picture(tmp_path: Path, photo: np.ndarray, exif: bytes) -> None:
    path = _save(tmp_path / "a.jpg", Image.fromarray(photo), exif=b"Exif\0\0" + exif)
    assert read_image(path).pixels.shape == photo.shape
    assert read_info(path).width_px == photo.shape[1]


def test_exif_that_pillow_cannot_read_is_noted(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(image: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 2 bytes")

    path = _save(tmp_path / "a.png", Image.fromarray(photo))
    monkeypatch.setattr(Image.Image, "getexif", refuse)
    loaded = read_image(path)
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert "EXIF is broken" in loaded.notes[0]


def test_only_the_first_frame_is_noted(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    path = _save(tmp_path / "a.tif", image, save_all=True, append_images=[image, image])
    assert "first of 3 frames" in read_image(path).notes[0]


def _broken_files(folder: Path, photo: np.ndarray) -> dict[str, Path]:
    whole = _save(folder / "whole.png", Image.fromarray(photo)).read_bytes()
    jpeg = _save(folder / "whole.jpg", Image.fromarray(photo)).read_bytes()
    files = {
        "empty": b"",
        "text": b"This is no picture.\n" * 50,
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:40],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "bad checksum": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "gif": b"GIF89a" + bytes(100),
    }
    paths = {"missing": folder / "missing.png", "folder": folder}
    for name, data in files.items():
        paths[name] = folder / f"{name}.png"
        paths[name].write_bytes(data)
    return paths


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "folder",
        "empty",
        "text",
        "truncated",
        "header only",
        "truncated jpeg",
        "bad checksum",
        "gif",
    ],
)
def test_broken_files(tmp_path: Path, photo: np.ndarray, kind: str) -> None:
    path = _broken_files(tmp_path, photo)[kind]
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_info, read_image])
def test_pillows_pixel_limit_is_kept(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, read: object
) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(photo))
    for limit in (photo.shape[0] * photo.shape[1] - 1, 100):  # where Pillow warns, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=f"at most {limit} pixels"):
            read(path)  # type: ignore[operator]


def test_32_bit_pictures_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(ImageError, match="pixel format F"):
        read_image(path)
