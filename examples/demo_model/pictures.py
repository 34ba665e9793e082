"""Training pictures of the demonstration model: which they are, and random pairs of crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

UPSCALE_FACTOR = 4

# Kodak's suite is released for unrestricted use; kodim16 to 18 are held out and never trained on.
KODAK_TRAINING = tuple(f"kodim{index:02d}.png" for index in range(1, 16))
KODAK_HELD_OUT = tuple(f"kodim{index:02d}.png" for index in range(16, 19))
# Of scikit-image's pictures only those that are CC0 or public domain and that `intsr demo` does not judge by.
SKIMAGE_TRAINING = ("chelsea", "rocket", "brick", "grass", "gravel")
# A sharp picture shrunk a little is a sharper picture: more detail a pixel to learn from.
SHRINKS = (1.0, 0.8, 0.62)

Pair = tuple[np.ndarray, np.ndarray]


def load_training_pictures(kodak: Path) -> list[Image.Image]:
    """Every picture trained on, as RGB."""
    from skimage import data as skimage_data

    pictures = [Image.open(kodak / name).convert("RGB") for name in KODAK_TRAINING]
    return pictures + [Image.fromarray(getattr(skimage_data, name)()).convert("RGB") for name in SKIMAGE_TRAINING]


def degrade(picture: Image.Image) -> Image.Image:
    """The low-resolution picture: antialiased bicubic, rounded to 8 bits as a file would be."""
    size = (picture.width // UPSCALE_FACTOR, picture.height // UPSCALE_FACTOR)
    return picture.resize(size, Image.Resampling.BICUBIC)


def pair_from_picture(picture: Image.Image) -> Pair:
    """(upscaled low-resolution input, original), both (H, W, 3) uint8, cropped to whole blocks of 8 pixels."""
    width, height = (side // 8 * 8 for side in picture.size)
    original = picture.crop((0, 0, width, height))
    upscaled = degrade(original).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(upscaled), np.asarray(original)


def pairs_from_pictures(pictures: Sequence[Image.Image]) -> list[Pair]:
    """One pair for each picture and each of `SHRINKS`."""
    pairs = []
    for picture in pictures:
        for shrink in SHRINKS:
            size = (round(picture.width * shrink), round(picture.height * shrink))
            shrunk = picture if shrink == 1.0 else picture.resize(size, Image.Resampling.LANCZOS)
            pairs.append(pair_from_picture(shrunk))
    return pairs


def tensor_from_array(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(array.copy()).movedim(-1, -3).float() / 127.5 - 1.0


def random_batch(
    pairs: Sequence[Pair], batch: int, patch_px: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, 3, patch_px, patch_px) float32 in [-1, 1], twice: inputs and originals, turned and mirrored."""
    sizes = np.array([pair[1].shape[0] * pair[1].shape[1] for pair in pairs], dtype=np.float64)
    chosen = rng.choice(len(pairs), size=batch, p=sizes / sizes.sum())
    inputs, originals = [], []
    for index in chosen:
        upscaled, original = pairs[index]
        top = rng.integers(0, (original.shape[0] - patch_px) // UPSCALE_FACTOR + 1) * UPSCALE_FACTOR
        left = rng.integers(0, (original.shape[1] - patch_px) // UPSCALE_FACTOR + 1) * UPSCALE_FACTOR
        turns, mirror, channels = rng.integers(4), rng.integers(2), rng.permutation(3)
        for picture, crops in ((upscaled, inputs), (original, originals)):
            crop = np.rot90(picture[top : top + patch_px, left : left + patch_px, channels], turns)
            crops.append(crop[:, ::-1] if mirror else crop)
    return tensor_from_array(np.stack(inputs)), tensor_from_array(np.stack(originals))
