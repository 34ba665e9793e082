"""Training pictures of the demonstration model: which they are, and random crops of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Kodak's suite is released for unrestricted use; kodim16 to 18 are held out and never trained on.
KODAK_TRAINING = tuple(f"kodim{index:02d}.png" for index in range(1, 16))
KODAK_HELD_OUT = tuple(f"kodim{index:02d}.png" for index in range(16, 19))
# Of scikit-image's pictures only those that are CC0 or public domain and that `intsr demo` does not judge by.
SKIMAGE_TRAINING = ("chelsea", "rocket", "brick", "grass", "gravel")
# Photographs of Debian's package lomiri-wallpapers-16.04: CC BY 4.0, the first CC0. README.md names their authors.
WALLPAPERS_TRAINING = (
    "seeding_by_Clements_Engelhardt.jpg",
    "Picture_0B_by_freespace.jpg",
    "Picture_1A_by_freespace.jpg",
    "Wine_by_Jakkub_Mede.jpg",
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "friends_by_Aitzol_Berasategi.jpg",
    "life_by_Aitzol_Berasategi.jpg",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
)
# A picture shrunk a little is a sharper one: more detail a pixel to learn from. Wallpapers are large and soft.
SHRINKS = (1.0, 0.8, 0.62)
WALLPAPER_SHRINKS = (0.5, 0.33)

PERMUTED_SHARE = 0.25  # of crops, whose colours change places

Pixels = NDArray[np.uint8]


def load_training_pictures(kodak: Path, wallpapers: Path) -> list[Pixels]:
    """Every picture trained on, in each of its sizes: (H, W, 3) uint8."""
    from skimage import data as skimage_data

    small = [Image.open(kodak / name).convert("RGB") for name in KODAK_TRAINING]
    small += [Image.fromarray(getattr(skimage_data, name)()).convert("RGB") for name in SKIMAGE_TRAINING]
    large = [Image.open(wallpapers / name).convert("RGB") for name in WALLPAPERS_TRAINING]
    sizes = [(picture, shrink) for picture in small for shrink in SHRINKS]
    sizes += [(picture, shrink) for picture in large for shrink in WALLPAPER_SHRINKS]
    return [np.asarray(_shrunk(picture, shrink)) for picture, shrink in sizes]


def _shrunk(picture: Image.Image, shrink: float) -> Image.Image:
    size = (round(picture.width * shrink), round(picture.height * shrink))
    return picture if shrink == 1.0 else picture.resize(size, Image.Resampling.LANCZOS)


def random_crop(pictures: Sequence[Pixels], side_px: int, rng: np.random.Generator) -> Pixels:
    """(side_px, side_px, 3) uint8 of a picture chosen by the root of its area, turned and mirrored."""
    weights = np.sqrt([float(picture.shape[0] * picture.shape[1]) for picture in pictures])
    picture = pictures[rng.choice(len(pictures), p=weights / weights.sum())]
    top, left = (int(rng.integers(0, side - side_px + 1)) for side in picture.shape[:2])
    channels = rng.permutation(3) if rng.random() < PERMUTED_SHARE else np.arange(3)
    crop = picture[top : top + side_px, left : left + side_px, channels]
    crop = np.rot90(crop, rng.integers(4))
    return np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop)


def smooth_crop(side_px: int, rng: np.random.Generator) -> Pixels:
    """(side_px, side_px, 3) uint8: one colour, a gradient of two, or some lines of text on one colour."""
    first, second = (
        rng.integers(0, 256, 3) if rng.random() < 0.7 else np.full(3, rng.integers(0, 256)) for _ in "ab"
    )
    if rng.random() < 0.25:
        first = np.full(3, rng.choice((0, 255)))
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(first.astype(np.uint8), (side_px, side_px, 3)).copy()
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:side_px, :side_px] / side_px - 0.5
        share = (np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(0.05, 0.7) + 0.5
        gradient = (
            first + (second - first) * share[..., None] + rng.normal(0, rng.uniform(0, 1.5), (side_px, side_px, 3))
        )
        return np.clip(np.rint(gradient), 0, 255).astype(np.uint8)
    page = Image.new("RGB", (side_px, side_px), tuple(int(v) for v in first))
    draw, size = ImageDraw.Draw(page), int(rng.integers(10, 40))
    for top in range(int(rng.integers(-size, size)), side_px, int(size * rng.uniform(1.2, 4))):
        text = "".join(chr(c) for c in rng.integers(33, 127, 24))
        draw.text(
            (int(rng.integers(-20, 20)), top), text, tuple(int(v) for v in second), ImageFont.load_default(size)
        )
    return np.asarray(page)
