"""Written whole, with what the format can hold; what it cannot hold is refused, before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from intsr.errors import ImageError
from intsr.runtime.batch.jobs import OUTPUT_FORMATS, PICTURE_SUFFIXES, UNWRITABLE_SUFFIXES
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.metadata.fields import ImageMetadata
from intsr.runtime.pictures.reader import READ_FORMATS, ImageInfo, read_image
from intsr.runtime.pictures.write_array import (
    WRITE_FORMATS,
    check_format_fits,
    enlarge_alpha,
    notes_for_output,
    write_image,
)

NOTHING = ImageMetadata()
# Made once: a profile carries the second it was made in.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ARTIST = 0x013B


def _metadata() -> ImageMetadata:
    exif = Image.Exif()
    exif[ARTIST] = "somebody"
    return ImageMetadata(exif.tobytes(), PROFILE, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"])
def test_every_format_reads_back(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, photo, None, _metadata())
    read = read_image(path)
    lossy = suffix in (".jpg", ".jpeg", ".webp", ".avif")
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


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_alpha_is_kept(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    alpha = np.repeat(np.linspace(0, 255, photo.shape[1], dtype=np.uint8)[None], photo.shape[0], axis=0)
    write_image(tmp_path / f"a{suffix}", photo, alpha, NOTHING)
    read = read_image(tmp_path / f"a{suffix}").alpha
    assert read is not None
    assert np.abs(read.astype(int) - alpha).max() <= (3 if suffix == ".avif" else 0)


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
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("shape", [(80, 33), (80, 33, 3)])
def test_16_bits_are_kept(tmp_path: Path, suffix: str, has_alpha: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 65536, shape, np.uint16)
    alpha = rng.integers(0, 65536, shape[:2], np.uint16) if has_alpha else None
    write_image(tmp_path / f"a{suffix}", pixels, alpha, _metadata())
    read = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read.pixels, pixels)
    assert read.pixels.dtype == np.uint16
    assert (read.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(read.alpha, alpha)
    assert (read.metadata.icc_profile, read.metadata.xmp) == (PROFILE, _metadata().xmp)
    exif = Image.Exif()
    exif.load(read.metadata.exif)
    assert exif[ARTIST] == "somebody"


def test_a_file_that_did_not_arrive_is_noticed(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    check = image_stream.check_written

    def check_half(file: Path, *expected: object) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        check(file, *expected)  # type: ignore[arg-type]

    monkeypatch.setattr(image_stream, "check_written", check_half)
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.avif", "a.bmp"):
        with pytest.raises(ImageError, match="cannot be written"):
            write_image(tmp_path / name, photo, None, NOTHING)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def _info(mode: str = "RGB", bits: int = 8, channels: int = 3) -> ImageInfo:
    return ImageInfo(10, 10, mode, False, bits, channels)


@pytest.mark.parametrize(
    ("info", "size", "name", "message"),
    [
        (_info(), (80000, 40), "a.jpg", r"sides up to 65500 in JPEG; write a \.png"),
        (_info(), (40, 20000), "a.webp", "sides up to 16383"),
        (_info(), (40, 20000), "a.avif", "sides up to 16384"),
        (_info(), (40, 2_000_000), "a.png", r"sides up to 1000000 in PNG; write a \.tif"),
        (_info(), (40000, 40000), "a.bmp", "4294901760 bytes in BMP"),
        (_info("I;16", 16, 1), (40, 40), "a.jpg", "16-bit grey"),
        (_info("RGB", 16), (40, 40), "a.avif", "16-bit colour"),
        (_info(), (40, 40), "a.gif", "suffix .gif"),
        (_info(), (40, 40), "a", "none"),
    ],
)
def test_what_cannot_be_written_is_known_beforehand(
    info: ImageInfo, size: tuple[int, int], name: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        check_format_fits(info, *size, Path(name))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.avif", "a.bmp"])
def test_what_can_be_written_passes(name: str) -> None:
    check_format_fits(_info(), 16383, 16383, Path(name))


def test_formats_agree_with_what_batches_look_for() -> None:
    assert set(PICTURE_SUFFIXES) == set(WRITE_FORMATS)
    assert {f".{name}" for name in OUTPUT_FORMATS if name != "same"} <= set(WRITE_FORMATS)
    assert {item.pillow for item in WRITE_FORMATS.values()} == set(READ_FORMATS)
    assert not set(UNWRITABLE_SUFFIXES) & set(WRITE_FORMATS)


def test_metadata_that_a_jpeg_cannot_hold_is_said_and_left_out(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ARTIST] = "x" * 70000
    metadata = ImageMetadata(exif.tobytes(), PROFILE * 200, b"y" * 70000)
    notes = notes_for_output(metadata, Path("a.jpg"))
    assert [note.split()[0] for note in notes] == ["EXIF", "XMP"]
    assert notes_for_output(metadata, Path("a.png")) == ()
    write_image(tmp_path / "a.jpg", photo, None, metadata)
    # In several segments.
    assert read_image(tmp_path / "a.jpg").metadata == ImageMetadata(b"", PROFILE * 200, b"")


def test_sizes_in_exif_are_those_of_the_file(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA002: 7, 0xA003: 9})
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.avif"):
        write_image(tmp_path / name, photo, None, ImageMetadata(exif.tobytes()))
        with Image.open(tmp_path / name) as written:
            details = written.getexif().get_ifd(0x8769)
        assert (details[0xA002], details[0xA003]) == (photo.shape[1], photo.shape[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_constant_alpha_stays_what_it_is(dtype: type) -> None:
    np.testing.assert_array_equal(enlarge_alpha(np.full((2, 3), 128, dtype), 4), np.full((8, 12), 128, dtype))


def test_16_bit_alpha_is_enlarged_like_8_bit_alpha() -> None:
    alpha = np.zeros((6, 8), np.uint8)
    alpha[:, 4:] = 255
    deep = enlarge_alpha(alpha.astype(np.uint16) * 257, 4)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - enlarge_alpha(alpha, 4)).max() < 1


def test_alpha_is_enlarged_by_lanczos() -> None:
    alpha = np.zeros((6, 8), np.uint8)
    alpha[:, 4:] = 255
    expected = np.asarray(Image.fromarray(alpha).resize((32, 24), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(enlarge_alpha(alpha, 4), expected)
