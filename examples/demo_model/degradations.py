"""What makes low resolution of a picture: half of the crops bicubic alone, half blurred, noisy, compressed."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

UPSCALE_FACTOR = 4
# Of the crops that are not simply reduced by antialiased bicubic: the shares that are blurred, noisy, compressed.
MIXED_SHARE, BLURRED, NOISY, COMPRESSED = 0.5, 0.7, 0.4, 0.4
MAX_BLUR_PX, MAX_NOISE, JPEG_QUALITY = 3.0, 5.0, (50, 96)
KERNELS = (Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)

Pixels = NDArray[np.uint8]


def reduce_bicubic(picture: Image.Image) -> Image.Image:
    """The low-resolution picture: antialiased bicubic, rounded to 8 bits as a file would be."""
    size = (picture.width // UPSCALE_FACTOR, picture.height // UPSCALE_FACTOR)
    return picture.resize(size, Image.Resampling.BICUBIC)


def reduce_mixed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur (sigma in original pixels), one of `KERNELS`, noise (in levels), JPEG: each by its share."""
    if rng.random() < BLURRED:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, MAX_BLUR_PX)))
    size = (picture.width // UPSCALE_FACTOR, picture.height // UPSCALE_FACTOR)
    reduced = picture.resize(size, KERNELS[rng.integers(len(KERNELS))])
    if rng.random() < NOISY:
        pixels = np.asarray(reduced) + rng.normal(0, rng.uniform(0, MAX_NOISE), (*reduced.size[::-1], 3))
        reduced = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    if rng.random() < COMPRESSED:
        file = io.BytesIO()
        reduced.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)), subsampling=int(rng.choice((0, 2))))
        reduced = Image.open(file).convert("RGB")
    return reduced


def upscaled_pair(
    original: Image.Image, rng: np.random.Generator | None = None, mixed_share: float = MIXED_SHARE
) -> tuple[Pixels, Pixels]:
    """(enlarged low-resolution input, original), (H, W, 3) uint8, cropped to whole blocks of 16.

    rng: for `mixed_share`; without it bicubic alone.
    """
    width, height = (side // 16 * 16 for side in original.size)
    original = original.crop((0, 0, width, height))
    mixed = rng is not None and rng.random() < mixed_share
    reduced = reduce_mixed(original, rng) if mixed and rng is not None else reduce_bicubic(original)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BICUBIC)), np.asarray(original)
