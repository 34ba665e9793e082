"""A tree of pictures of every kind that `intsr upscale` takes, and of files that only look like pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.writer import write_image

Save = Callable[[Path, np.ndarray], None]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, ARTIST = 0x0112, 0x013B


@dataclass(frozen=True, slots=True)
class Expected:
    """Of the output. size: width and height. mode: as Pillow opens the file. bits: of a channel."""

    size: tuple[int, int]
    mode: str
    bits: int = 8
    icc: bool = False
    artist: bool = False


def _photo(width: int, height: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8, smooth with some texture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def _exif(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ARTIST] = "somebody"
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def write_good(folder: Path, factor: int) -> dict[str, Expected]:
    """50 pictures -> by relative name, what `-r` with the formats kept makes of them."""
    made: dict[str, Expected] = {}
    seed = 0

    def add(
        name: str, mode: str, save: Callable[[Path, np.ndarray], None], turned: bool = False, **more: object
    ) -> None:
        nonlocal seed
        seed += 1
        width, height = 20 + seed % 7, 31 - seed % 5
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, _photo(width, height, seed))
        size = (height * factor, width * factor) if turned else (width * factor, height * factor)
        made[name] = Expected(size, mode, **more)  # type: ignore[arg-type]

    def image(convert: str = "RGB", **settings: object) -> Save:
        def save(path: Path, pixels: np.ndarray) -> None:
            Image.fromarray(pixels).convert(convert).save(path, **settings)  # type: ignore[arg-type]

        return save

    def transparent(path: Path, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels).convert("L" if "grey" in path.name else "RGB")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path)

    def palette(path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).quantize(40).save(path)

    def deep(channels: int) -> Save:
        def save(path: Path, pixels: np.ndarray) -> None:
            wide = pixels.astype(np.uint16) * 257
            alpha = np.linspace(0, 65535, pixels.shape[1]).astype(np.uint16)[None].repeat(len(pixels), 0)
            # Pillow writes none of these but grey.
            colours = wide[..., 0] if channels < 3 else wide
            write_image(path, colours, alpha if channels in (2, 4) else None, ImageMetadata())

        return save

    def two_levels(path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).convert("L").convert("1", dither=Image.Dither.NONE).save(path)

    suffixes = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif"]
    for index, suffix in enumerate(suffixes):
        add(f"rgb/{index}{suffix}", "RGB", image())
        add(f"RGB upper/{index}{suffix.upper()}", "RGB", image())
        # WebP and AVIF know no grey.
        add(f"grey/{index}{suffix}", "RGB" if suffix in (".webp", ".avif") else "L", image("L"))
    for index, suffix in enumerate((".png", ".webp", ".tif")):
        add(f"alpha/{index}{suffix}", "RGBA", transparent)
        add(f"alpha/opaque{index}{suffix}", "RGB", image("RGBA"))
    add("alpha/grey.png", "LA", transparent)
    for name, channels, mode in (("grey", 1, "I;16"), ("colour", 3, "RGB"), ("colour-alpha", 4, "RGBA")):
        add(f"deep/{name}.png", mode, deep(channels), bits=16)
    add("deep/grey.tif", "I;16", deep(1), bits=16)
    add("palette.png", "RGB", palette)
    add("bits.png", "L", two_levels)
    add("cmyk.jpg", "RGB", image("CMYK"))
    add("cmyk.tif", "RGB", image("CMYK"))
    for index, suffix in enumerate((".jpg", ".png", ".webp", ".tif")):
        add(f"meta/profile{index}{suffix}", "RGB", image(icc_profile=PROFILE, exif=_exif()), icc=True, artist=True)
    for orientation in range(2, 9):
        add(
            f"meta/turned{orientation}.jpg",
            "RGB",
            image(exif=_exif(orientation)),
            turned=orientation > 4,
            artist=True,
        )
    return made


def write_broken(folder: Path) -> list[str]:
    """Eleven that cannot be read: ten broken, one link that leads nowhere."""
    whole = folder / ".whole.png"
    Image.fromarray(_photo(40, 30, 99)).save(whole)
    png = whole.read_bytes()
    Image.fromarray(_photo(40, 30, 98)).save(whole, format="JPEG")
    jpeg = whole.read_bytes()
    whole.unlink()
    huge = bytearray(png)
    huge[16:24] = struct.pack(">II", 2_000_000, 2_000_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    contents = {
        "broken/empty.png": b"",
        "broken/text.jpg": b"this is no picture",
        "broken/half.png": png[: len(png) // 2],
        "broken/half.jpg": jpeg[: len(jpeg) // 3],
        "broken/header.png": png[:20],
        "broken/huge.png": bytes(huge),
        "broken/zeros.tif": bytes(2000),
        "broken/flipped.png": png[:60] + bytes(byte ^ 255 for byte in png[60:200]) + png[200:],
        "broken/riff.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
        "broken/header.bmp": b"BM" + bytes(30),
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "broken/nowhere.png").symlink_to(folder / "broken/gone.png")
    return [*contents, "broken/nowhere.png"]
