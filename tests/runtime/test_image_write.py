"""Written whole, with what the format can hold; what it cannot hold is refused, before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime import image_write
from intsr.runtime.image_io import ImageInfo, read_image
from intsr.runtime.image_metadata import ImageMetadata
from intsr.runtime.image_write import check_output_fits, enlarge_alpha, notes_for_output, write_image

NOTHING = ImageMetadata()
# Made once: a profile carries the second it was made in.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ARTIST = 0x013B


def _metadata() -> ImageMetadata:
    exif = Image.Exif()
    exif[ARTIST] = "somebody"
    return ImageMetadata(exif.tobytes(), PROFILE, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
def test_every_format_reads_back(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, photo, None, _metadata())
    read = read_image(path)
    lossy = suffix in (".jpg", ".jpeg", ".webp")
    assert np.abs(read.pixels.astype(int) - photo).mean() < (4 if lossy else 1e-9)
    if suffix != ".bmp":
        exif = Image.Exif()
        exif.load(read.metadata.exif)
        assert exif[ARTIST] == "somebody"
        assert read.metadata.icc_profile == _metadata().icc_profile
        assert read.metadata.xmp == _metadata().xmp
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_bmp_drops_is_said() -> None:
    assert notes_for_output(_metadata(), Path("a.bmp")) == ("EXIF, XMP and ICC were dropped: BMP holds none of them",)
    assert notes_for_output(_metadata(), Path("a.png")) == notes_for_output(NOTHING, Path("a.bmp")) == ()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_kept(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    alpha = np.repeat(np.linspace(0, 255, photo.shape[1], dtype=np.uint8)[None], photo.shape[0], axis=0)
    write_image(tmp_path / f"a{suffix}", photo, alpha, NOTHING)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").alpha, alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_never_dropped(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    with pytest.raises(ImageError, match=r"transparent.*write a \.png"):
        write_image(tmp_path / f"a{suffix}", photo, np.zeros(photo.shape[:2], np.uint8), NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_grey_alpha(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = photo[..., 1]
    write_image(tmp_path / "a.png", photo[..., 0], alpha, NOTHING)
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read.pixels, photo[..., 0])
    np.testing.assert_array_equal(read.alpha, alpha)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_kept(tmp_path: Path, suffix: str) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    write_image(tmp_path / f"a{suffix}", pixels, None, NOTHING)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, pixels)


def test_a_file_that_did_not_arrive_is_noticed(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    save = Image.Image.save

    def save_half(image: Image.Image, file: Path, **settings: object) -> None:
        save(image, file, **settings)  # type: ignore[arg-type]
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(path, photo, None, NOTHING)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("info", "name", "message"),
    [
        (ImageInfo(20000, 10, "RGB", False), "a.jpg", "sides up to 65500"),
        (ImageInfo(5000, 10, "RGB", False), "a.webp", "sides up to 16383"),
        (ImageInfo(10, 10, "I;16", False), "a.jpg", "16-bit grey"),
        (ImageInfo(10, 10, "RGB", False), "a.gif", "suffix .gif"),
        (ImageInfo(10, 10, "RGB", False), "a", "none"),
    ],
)
def test_what_cannot_be_written_is_known_beforehand(info: ImageInfo, name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_output_fits(info, 4, Path(name))


def test_memory_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_write, "available_bytes", lambda: 10_000_000)
    check_output_fits(ImageInfo(100, 100, "RGB", False), 4, Path("a.png"))
    with pytest.raises(OutOfMemoryError, match="4000x4000 pixels out"):
        check_output_fits(ImageInfo(1000, 1000, "RGB", False), 4, Path("a.png"))


def test_alpha_is_enlarged_by_lanczos() -> None:
    alpha = np.zeros((6, 8), np.uint8)
    alpha[:, 4:] = 255
    expected = np.asarray(Image.fromarray(alpha).resize((32, 24), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(enlarge_alpha(alpha, 4), expected)
    np.testing.assert_array_equal(enlarge_alpha(np.full((2, 3), 128, np.uint8), 4), np.full((8, 12), 128))
