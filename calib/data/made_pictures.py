"""Smooth and flat pictures that are made, not photographed: what calibration guards, and what verification asks for.

Skies, pages, product shots and letterbox bars are what people have most of, and textured photographs say
nothing of them: a residual stream that is never normalized reaches further there than on any texture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

U8 = NDArray[np.uint8]
Color = tuple[int, int, int]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# Pairs of colours that gradients go between: a sky, skin, night, black to white, and across the colour cube.
GUARD_GRADIENTS: tuple[tuple[Color, Color], ...] = (
    ((70, 130, 210), (200, 225, 250)),
    ((235, 195, 170), (150, 95, 75)),
    ((4, 6, 20), (30, 34, 60)),
    (BLACK, WHITE),
    ((0, 0, 255), (255, 255, 0)),
    ((0, 255, 0), (255, 0, 255)),
    ((255, 0, 0), (0, 255, 255)),
)
GUARD_FLAT: tuple[Color, ...] = (WHITE, BLACK, (0, 0, 255), (0, 255, 0), (255, 0, 0))
GUARD_TEXT = "Lorem ipsum dolor sit amet, consectetur adipiscing elit"
TILE_TEXT = "The quick brown fox jumps over the lazy dog 0123456789"


def guard_pictures(side_px: int, seed: int = 0) -> list[U8]:
    """Make what calibration sees beside the user's pictures: (side_px, side_px, 3) uint8 each, low resolution.

    Gradients with noise of about one level, flat colours, two pages of text. seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    gradients = [noisy(gradient(side_px, *ends), 1.0, rng) for ends in GUARD_GRADIENTS]
    inks = (((20, 20, 20), (252, 252, 250)), ((220, 220, 210), (30, 30, 34)))
    pages = [page(side_px, GUARD_TEXT, ink, paper) for ink, paper in inks]
    return [
        *gradients[::2],
        *pages[:1],
        *(flat(side_px, color) for color in GUARD_FLAT),
        *gradients[1::2],
        *pages[1:],
    ]


def smooth_tiles(side_px: int) -> dict[str, U8]:
    """Make what engines are verified on beside the user's pictures: name -> (side_px, side_px, 3) uint8, low
    resolution.

    Of `guard_pictures` they share four flat colours, and nothing else.
    """
    return {
        "black": flat(side_px, BLACK),
        "white": flat(side_px, WHITE),
        "grey": flat(side_px, (128, 128, 128)),
        "red": flat(side_px, (255, 0, 0)),
        "blue": flat(side_px, (0, 0, 255)),
        "sky": noisy(gradient(side_px, (90, 140, 220), (190, 215, 245)), 1.0, np.random.default_rng(1)),
        "grey gradient": gradient(side_px, (30, 30, 30), (225, 225, 225)),
        "text": page(side_px, TILE_TEXT, BLACK, WHITE, lines=1),
    }


def flat(side_px: int, color: Color) -> U8:
    return np.full((side_px, side_px, 3), color, np.uint8)


def gradient(side_px: int, top: Color, bottom: Color) -> U8:
    """From one colour to the other, a little slanted, rounded to whole levels."""
    y, x = np.mgrid[:side_px, :side_px] / max(side_px - 1, 1)
    share = (0.85 * y + 0.15 * x)[..., None]
    return np.rint(np.asarray(top) * (1 - share) + np.asarray(bottom) * share).astype(np.uint8)


def noisy(pixels: U8, level: float, rng: np.random.Generator) -> U8:
    """With Gaussian noise of so many levels added."""
    return np.clip(np.rint(pixels + rng.normal(0, level, pixels.shape)), 0, 255).astype(np.uint8)


def page(side_px: int, text: str, ink: Color, paper: Color, lines: int | None = None) -> U8:
    """Lines of text from one margin beyond the other; as many as fit, or so many in the middle."""
    picture = Image.new("RGB", (side_px, side_px), paper)
    draw, size = ImageDraw.Draw(picture), max(8, side_px // 10)
    font, step = ImageFont.load_default(size), round(size * 1.5)
    tops = range(size // 2, side_px - size, step) if lines is None else [side_px // 2 - size * lines // 2]
    for index, top in enumerate(tops):
        draw.text((side_px // 16, top), text[(7 * index) % len(text) :] + text, ink, font)
    return np.asarray(picture)
