"""Pictures that come in bands: every format, whole or not at all, in bounded memory, beside the caller."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.pictures import encode as image_encode
from intsr.runtime.pictures.metadata.exif import read_directory
from intsr.runtime.pictures.metadata.fields import ImageMetadata
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.writer import open_writer

LOSSLESS = (".png", ".tif", ".bmp")
STREAMED = (".png", ".jpg", ".tif")
ALL = (*STREAMED, ".webp", ".avif", ".bmp")


def _rows(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, C), smooth enough for JPEG."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    unit = 0.5 + 0.2 * np.sin(x / 9 + c) + 0.2 * np.cos(y / 13 - c)
    return (unit * np.iinfo(dtype).max).astype(dtype)


def _write(path: Path, rows: np.ndarray, step: int, has_alpha: bool = False, **settings: object) -> None:
    height, width, channels = rows.shape
    with open_writer(path, width, height, channels - has_alpha, rows.dtype, has_alpha, **settings) as writer:  # type: ignore[arg-type]
        for top in range(0, height, step):
            writer.write(rows[top : top + step])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("suffix", ALL)
def test_every_format_in_bands(tmp_path: Path, suffix: str, colours: int, has_alpha: bool, dtype: type) -> None:
    path, rows = tmp_path / f"a{suffix}", _rows(150, 67, colours + has_alpha, dtype)
    unholdable = (dtype is np.uint16 and suffix not in (".png", ".tif")) or (has_alpha and suffix in (".jpg", ".bmp"))
    if unholdable:
        with pytest.raises(ImageError, match=r"write a \.png"):
            _write(path, rows, 41, has_alpha)
        assert list(tmp_path.iterdir()) == []
        return
    _write(path, rows, 41, has_alpha)
    read = read_image(path)
    assert read.pixels.dtype == dtype
    pixels = read.pixels if read.pixels.ndim == 3 else read.pixels[..., None]
    differences = np.abs(pixels.astype(int) - rows[..., :colours])
    assert differences.max() <= (0 if suffix in LOSSLESS else 12)
    assert (read.alpha is not None) == has_alpha
    if read.alpha is not None:
        assert np.abs(read.alpha.astype(int) - rows[..., -1]).max() <= (3 if suffix == ".avif" else 0)


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("resize_to", [None, (50, 90)])
def test_equal_pictures_are_equal_bytes_however_they_come(
    tmp_path: Path, suffix: str, resize_to: tuple[int, int] | None
) -> None:
    rows = _rows(201, 67, 3)
    for name, step in (("a", 201), ("b", 1), ("c", 64)):
        _write(tmp_path / f"{name}{suffix}", rows, step, resize_to=resize_to)
    first, *others = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "abc")
    assert others == [first, first]


@pytest.mark.parametrize("new_size", [(33, 100), (67, 77), (134, 402), (100, 31), (1, 1), (68, 200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resized_as_pillow_resizes_the_whole(
    tmp_path: Path, channels: int, dtype: type, new_size: tuple[int, int]
) -> None:
    rows = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (201, 67, channels), dtype)
    _write(tmp_path / "a.png", rows, 40, channels % 2 == 0, resize_to=new_size)
    read = read_image(tmp_path / "a.png")
    found = np.dstack([read.pixels, *([] if read.alpha is None else [read.alpha])])
    values = rows if dtype is np.uint8 else rows.astype(np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(values[..., channel])) for channel in range(channels)]
    # Along x, then along y: in one call Pillow may take the other way round, which rounds otherwise.
    across = [plane.resize((new_size[0], 201), Image.Resampling.LANCZOS) for plane in planes]
    whole = [np.asarray(plane.resize(new_size, Image.Resampling.LANCZOS)) for plane in across]
    expected = np.clip(np.dstack(whole).astype(np.float64), 0, np.iinfo(dtype).max)
    assert np.abs(found - expected).max() <= 1


def test_quality(tmp_path: Path) -> None:
    rows = _rows(200, 200, 3)
    rows += np.random.default_rng(0).integers(0, 20, rows.shape, np.uint8)
    for suffix in (".jpg", ".webp", ".avif"):
        sizes = []
        for quality in (30, 80, None):
            _write(tmp_path / f"a{suffix}", rows, 64, quality=quality)
            sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        assert sizes == sorted(set(sizes))
    _write(tmp_path / "a.png", rows, 64, quality=30)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, rows)


def test_jpeg_keeps_colours_in_full_resolution(tmp_path: Path) -> None:
    _write(tmp_path / "a.jpg", _rows(64, 64, 3), 64)
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        assert image.info["jfif_version"] == (1, 1)


def test_a_png_is_no_larger_than_pillows(tmp_path: Path) -> None:
    """At level 4 there; a photograph of a megapixel."""
    from skimage.data import astronaut

    photo = np.asarray(Image.fromarray(astronaut()).resize((1024, 1024), Image.Resampling.LANCZOS))
    _write(tmp_path / "ours.png", photo, 256)
    Image.fromarray(photo).save(tmp_path / "pillow.png", compress_level=4)
    assert (tmp_path / "ours.png").stat().st_size < 1.05 * (tmp_path / "pillow.png").stat().st_size


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_of_either_size_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: bool, channels: int
) -> None:
    """BigTIFF is for more than 4 GiB; here it is forced."""
    monkeypatch.setattr(image_encode, "_BIG_TIFF_BYTES", 0 if big else 1 << 40)
    exif = Image.Exif()
    exif[0x013B], exif[0x011A] = "somebody", 300.0
    exif.get_ifd(0x8769).update({0xA002: 1, 0x9003: "2020:02:02 02:02:02", 0x927C: b"maker", 0xA005: {1: "R98"}})
    exif.get_ifd(0x8825).update({1: "N", 2: (12.0, 30.0, 1.5)})
    metadata, rows = ImageMetadata(exif.tobytes(), b"icc" * 50, b"<xmp/>"), _rows(150, 67, channels)
    _write(tmp_path / "a.tif", rows, 64, channels % 2 == 0, metadata=metadata)
    with (tmp_path / "a.tif").open("rb") as file:
        assert read_directory(file)[1].big == big
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(rows.shape), rows)
        found, details = image.getexif(), dict(image.getexif().get_ifd(0x8769))
        gps = dict(image.getexif().get_ifd(0x8825))
        assert (found[0x013B], found[0x011A], image.info["xmp"]) == ("somebody", 300.0, b"<xmp/>")
        assert image.info["icc_profile"] == b"icc" * 50
    assert (details[0xA002], details[0x9003], details[0x927C]) == (67, "2020:02:02 02:02:02", b"maker")
    assert gps == {1: "N", 2: (12.0, 30.0, 1.5)}


def test_resolution_is_not_made_up(tmp_path: Path) -> None:
    for suffix in STREAMED:
        _write(tmp_path / f"a{suffix}", _rows(20, 20, 3), 20)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.info.get("dpi", (1, 1)) == (1, 1)
            assert 282 not in image.getexif()


def test_encoding_runs_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder waits; the caller does not, until the room between them is full."""
    encode, go = image_encode.encode_stream, threading.Event()

    def late(*arguments: object) -> None:
        go.wait(30)
        encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("intsr.runtime.pictures.writer.encode_stream", late)
    rows, written = np.zeros((100, 5000, 3), np.uint8), []
    with open_writer(tmp_path / "a.jpg", 5000, 10000, 3, np.uint8) as writer:
        timer = threading.Timer(1.0, go.set)
        timer.start()
        for _ in range(100):
            writer.write(rows)
            written.append(go.is_set())
        timer.join()
    # 1.5 MB a time: 64 MiB, what the two threads have in hand, and no more.
    assert 40 <= written.index(True) <= 50


def test_help_does_not_import_libvips() -> None:
    code = "import sys, intsr.runtime.pictures.writer, intsr.runtime.pictures.reader; print('pyvips' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "False\n"
    code = "import sys; from intsr.cli.main import main\ntry: main()\nfinally: print('pyvips' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.endswith("False\n")
