"""Pictures of every kind read as they are, and every broken file is one ImageError."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, ImageCms, PngImagePlugin, features

from intsr.errors import ImageError, OutOfMemoryError
from intsr.runtime import image_write
from intsr.runtime.image_io import read_image, read_info
from intsr.runtime.image_metadata import ImageMetadata
from intsr.runtime.image_write import write_image
from intsr.runtime.vips import vips

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


def _png16(path: Path, values: np.ndarray, transparent: tuple[int, ...] = ()) -> Path:
    """(H, W, 1 to 4) uint16. transparent: a colour that is, as PNG has it without an alpha channel."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))
    header += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (300, 7, channels), np.uint16)
    path = _png16(tmp_path / "deep.png", values)
    loaded, info = read_image(path), read_info(path)
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


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_tiff_keeps_every_bit(
    tmp_path: Path, photo: np.ndarray, fuzz_pictures: ModuleType, channels: int, big: bool, order: str
) -> None:
    path = tmp_path / "deep.tif"
    path.write_bytes(fuzz_pictures.deep_tiff(photo, channels, big, order))
    loaded, info = read_image(path), read_info(path)
    values = np.rot90(np.dstack([photo, photo[..., :1]])[..., :channels].astype(np.uint16) * 257, -1)
    assert (info.height_px, info.width_px) == values.shape[:2]
    assert (info.bits, info.channels, info.has_alpha) == (16, 1 if channels == 2 else 3, channels != 3)
    np.testing.assert_array_equal(loaded.pixels, values[..., 0] if channels == 2 else values[..., :3])
    if channels != 3:
        np.testing.assert_array_equal(loaded.alpha, values[..., -1])
    assert loaded.notes == ()


def test_premultiplied_16_bit_colours_are_divided(
    tmp_path: Path, photo: np.ndarray, fuzz_pictures: ModuleType
) -> None:
    data = bytearray(fuzz_pictures.deep_tiff(photo, 4, False))
    at = data.rindex(struct.pack("<HHII", 338, 3, 1, 2))
    data[at : at + 12] = struct.pack("<HHII", 338, 3, 1, 1)
    (tmp_path / "a.tif").write_bytes(data)
    loaded = read_image(tmp_path / "a.tif")
    stored = np.rot90(np.dstack([photo, photo[..., :1]]).astype(np.float64) * 257, -1)
    expected = np.minimum(stored[..., :3] / np.maximum(stored[..., 3:], 1) * 65535, 65535)
    assert np.abs(loaded.pixels - expected).max() <= 1


def test_grey_alpha_and_palette_modes(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    grey = image.convert("L")
    assert read_image(_save(tmp_path / "l.png", grey)).pixels.shape == photo.shape[:2]
    assert read_image(_save(tmp_path / "bilevel.png", image.convert("1"))).pixels.ndim == 2
    assert read_image(_save(tmp_path / "p.png", image.quantize(16))).pixels.shape == photo.shape
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
    assert read_info(late).width_px == photo.shape[0] == read_image(late).pixels.shape[1]

    def refuse(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert read_info(early).width_px == photo.shape[0]
    assert read_info(_save(tmp_path / "plain.png", Image.fromarray(photo))).width_px == photo.shape[1]


def test_memory_is_predicted_from_the_header(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(photo))
    needed = read_info(path).decode_bytes
    monkeypatch.setattr(image_write, "available_bytes", lambda: needed - 1)
    with pytest.raises(OutOfMemoryError, match="71x53 pixels need"):
        read_image(path)
    monkeypatch.setattr(image_write, "available_bytes", lambda: needed)
    read_image(path)


_DECODING = """
import sys
from pathlib import Path
from intsr.memory import peak_resident_bytes
from intsr.runtime.image_io import read_image
path = Path(sys.argv[1])
read_image(path.with_name("small" + path.suffix))
before = peak_resident_bytes()
pixels = read_image(path).pixels
print((peak_resident_bytes() - before) / (pixels.shape[0] * pixels.shape[1]))
"""


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
    pixels = photo.shape[0] * photo.shape[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", -(-pixels // 2))  # where Pillow only warns
    read(path)  # type: ignore[operator]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2)
    with pytest.raises(ImageError, match=f"at most {pixels // 2 * 2} pixels"):
        read(path)  # type: ignore[operator]


@pytest.mark.parametrize("read", [read_info, read_image])
def test_the_limit_holds_for_16_bit_tiff_too(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, fuzz_pictures: ModuleType, read: object
) -> None:
    (tmp_path / "a.tif").write_bytes(fuzz_pictures.deep_tiff(photo, 3, False))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.shape[0] * photo.shape[1] // 2)
    with pytest.raises(ImageError, match="more pixels than the limit"):
        read(tmp_path / "a.tif")  # type: ignore[operator]


def test_32_bit_pictures_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(ImageError, match="pixel format F"):
        read_image(path)
