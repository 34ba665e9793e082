"""Pictures for the window: several kinds with what they carry, and some that must be refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms


def write_pictures(folder: Path, photo: np.ndarray) -> list[Path]:
    """Four that can be made, of four formats, and one that breaks off in its middle, as the third."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(folder / "turned & tagged.jpg", quality=92, exif=exif, icc_profile=profile, dpi=(300, 300))
    alpha = np.linspace(0, 255, photo.shape[0] * photo.shape[1]).reshape(photo.shape[:2]).astype(np.uint8)
    Image.fromarray(np.dstack([photo, alpha])).save(folder / "clear.png")
    image.save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    image.convert("L").save(folder / "grey.webp", lossless=True)
    image.save(folder / "scan.tif")
    return [folder / name for name in ("turned & tagged.jpg", "clear.png", "torn.png", "grey.webp", "scan.tif")]


def write_huge_header(path: Path) -> Path:
    """A PNG that says it has 200 megapixels."""
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path
