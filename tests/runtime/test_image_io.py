"""Pictures of every kind read as they are, and every broken file is one ImageError."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from intsr import memory
from intsr.errors import ImageError, OutOfMemoryError, UsageError
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import list_pictures, read_header, read_image, read_pixels
from intsr.runtime.pictures.writer import write_image

ORIENTATION = 0x0112
RNG = np.random.default_rng(3)


def _save(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "really_a_png.jpg"])
def test_colour_of_every_format(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    settings = {"a.webp": {"lossless": True}, "really_a_png.jpg": {"format": "PNG"}}.get(name, {})
    loaded = read_image(_save(tmp_path / name, Image.fromarray(photo), **settings))
    np.testing.assert_array_equal(loaded.pixels, photo)
    assert (loaded.alpha, loaded.notes) == (None, ())


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
def test_grey_and_palettes(tmp_path: Path, photo: np.ndarray, mode: str) -> None:
    image = Image.fromarray(photo).convert("L" if mode == "LA" else mode).convert(mode)
    loaded = read_image(_save(tmp_path / "a.png", image))
    np.testing.assert_array_equal(loaded.pixels, np.asarray(image.convert("RGB" if mode == "P" else "L")))
    assert loaded.alpha is None


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
def test_orientation_is_applied_once(tmp_path: Path, photo: np.ndarray, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = _save(tmp_path / f"a{suffix}", Image.fromarray(photo), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    loaded, header = read_image(path), read_header(path)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert (header.height_px, header.width_px) == expected.shape[:2]


def test_a_header_is_read_without_decoding(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a PNG, Pillow decodes all to find EXIF: only where it may lie behind the pixels is that needed."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    early = _save(tmp_path / "early.png", Image.fromarray(photo), exif=exif)
    data = early.read_bytes()
    at = data.index(b"eXIf") - 4
    chunk, end = data[at : at + 12 + struct.unpack(">I", data[at : at + 4])[0]], len(data) - 12
    late = tmp_path / "late.png"
    late.write_bytes(data[:at] + data[at + len(chunk) : end] + chunk + data[end:])
    assert read_header(late).width_px == photo.shape[0] == read_image(late).pixels.shape[1]

    def refuse(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert read_header(early).width_px == photo.shape[0]
    assert read_header(_save(tmp_path / "plain.png", Image.fromarray(photo))).width_px == photo.shape[1]


def test_memory_is_predicted_from_the_header(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(photo))
    needed = read_header(path).decode_bytes
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    with pytest.raises(OutOfMemoryError, match="71x53 pixels need"):
        read_image(path)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed)
    read_image(path)


_DECODING = """
import sys
from pathlib import Path
from intsr.memory import peak_resident_bytes
from intsr.runtime.pictures.reader import read_image
path = Path(sys.argv[1])
read_image(path.with_name("small" + path.suffix))
before = peak_resident_bytes()
pixels = read_image(path).pixels
print((peak_resident_bytes() - before) / (pixels.shape[0] * pixels.shape[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("a.png", 8), ("a.jpg", 8), ("a.png", 16), ("a.tif", 16)])
def test_memory_while_decoding(tmp_path: Path, name: str, bits: int) -> None:
    """8 bytes a pixel; the result is 3 of them, 6 of 16-bit colour, whose copy in Pillow is gone by then."""
    pixels = np.zeros((4000, 5000, 3), np.uint8 if bits == 8 else np.uint16)
    pixels[::7] = 200
    write_image(tmp_path / name, pixels, None, ImageMetadata())
    write_image(tmp_path / f"small{name[1:]}", pixels[:8, :8], None, ImageMetadata())
    command = [sys.executable, "-c", _DECODING, str(tmp_path / name)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    # The libraries take something once, whatever the size.
    assert float(result.stdout) < 8 + 30e6 / 20e6


def test_only_the_first_frame_is_noted(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    path = _save(tmp_path / "a.webp", image, save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    assert read_image(path).notes == ("only the first of 3 frames was read",)


def test_broken_files(tmp_path: Path, photo_path: Path) -> None:
    whole, text = photo_path.read_bytes(), b"This is no picture.\n" * 50
    contents = (b"", text, whole[: len(whole) // 2], whole[:40], whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    broken = [tmp_path / f"{number}.png" for number in range(len(contents))]
    for path, data in zip(broken, contents, strict=True):
        path.write_bytes(data)
    for path in (*broken, tmp_path / "missing.png", tmp_path):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_pillows_pixel_limit_is_kept(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(photo))
    pixels = photo.shape[0] * photo.shape[1]
    for read in (read_header, read_image):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", -(-pixels // 2))  # where Pillow only warns
        read(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2)
        with pytest.raises(ImageError, match=f"at most {pixels // 2 * 2} pixels"):
            read(path)


_FILES_OPENED = """
import sys
from intsr.cli.main import main
opened = []
sys.addaudithook(lambda event, values: event == "open" and str(values[0]) == sys.argv[3] and opened.append(event))
try:
    main()
finally:
    print(len(opened))
"""


@pytest.mark.parametrize(("suffix", "deep"), [(".png", False), (".png", True), (".jpg", False), (".tif", True)])
def test_a_file_is_opened_twice(
    tmp_path: Path, photo: np.ndarray, identity_engine: Path, suffix: str, deep: bool
) -> None:
    """Once for its header, whoever asks for it, and once for its pixels and metadata."""
    path = tmp_path / f"a{suffix}"
    write_image(path, photo.astype(np.uint16) * 257 if deep else photo, None, ImageMetadata())
    command = ["upscale", str(identity_engine), str(path), "-o", str(tmp_path / "out.png")]
    command = [sys.executable, "-c", _FILES_OPENED, *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (result.stdout.splitlines()[-1:], result.returncode) == (["2"], 0), result


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "png"), (".jpg", "jpeg")])
def test_few_modules_are_on_the_way_of_a_picture(tmp_path: Path, photo: np.ndarray, suffix: str, kind: str) -> None:
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[ORIENTATION] = 6
    path = _save(tmp_path / f"a{suffix}", Image.fromarray(photo), exif=exif, icc_profile=profile, dpi=(300, 300))
    entered = set[str]()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            entered.add(str(frame.f_globals.get("__name__")))

    sys.setprofile(watch)
    try:
        read_image(path)
    finally:
        sys.setprofile(None)
    ours = {name for name in entered if name.startswith("intsr.")}
    assert f"intsr.runtime.pictures.formats.{kind}" in ours
    assert len(ours) <= 5, ours


def test_pictures_of_a_folder(tmp_path: Path, photo_path: Path) -> None:
    for name in ("b.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_pictures(tmp_path) == [tmp_path / "b.JPG", photo_path]
    assert list_pictures(photo_path, or_picture=True) == [photo_path]
    for path, or_picture, message in (
        (photo_path, False, "no such folder; expected a folder of pictures$"),
        (tmp_path / "none", True, "no such folder; expected a folder of pictures, or a picture"),
        (tmp_path / "folder.png", False, r"no picture; expected files ending in \.png"),
    ):
        with pytest.raises(UsageError, match=message):
            list_pictures(path, or_picture=or_picture)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_numbers_for_measuring(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """16-bit ones on the scale of 8-bit ones; opaque transparency is dropped, and any other refused."""
    most, path = np.iinfo(dtype).max, tmp_path / "a.png"
    pixels, alpha = RNG.integers(0, most, shape, dtype, endpoint=True), np.full((5, 7), most, dtype)
    write_image(path, pixels, alpha, ImageMetadata())
    found = read_pixels(path)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, pixels / (most / 255), rtol=1e-15)
    alpha[2, 3] -= 1
    write_image(path, pixels, alpha, ImageMetadata())
    with pytest.raises(ImageError, match="transparent pixels"):
        read_pixels(path)
