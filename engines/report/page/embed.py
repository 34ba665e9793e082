"""Pictures as a page carries them: `data:` addresses, small enough, with what that costs said."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intsr.engines.report.measure.picture_scores import Block
from intsr.engines.report.measure.variants import U8

# What a slider shows at most: larger pictures are cut, never reduced, for reduction hides what they differ in.
PART_WIDTH_PX, PART_HEIGHT_PX = 1024, 768
QUALITIES = (92, 85, 75, 60)
SLIDER_BYTES = 2_400_000
MAP_SIDE_PX = 512
THUMBNAIL_SIDE_PX = 192


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a picture that is shown, in output pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def part_to_show(width_px: int, height_px: int, around: Block | None) -> Part:
    """The whole picture, or the largest part allowed, around the block that differs most, else in the middle."""
    width, height = min(width_px, PART_WIDTH_PX), min(height_px, PART_HEIGHT_PX)
    x, y = width_px // 2, height_px // 2
    if around is not None:
        x, y = around.left + around.side_px // 2, around.top + around.side_px // 2
    left, top = (
        int(np.clip(centre - side // 2, 0, length - side))
        for centre, side, length in ((x, width, width_px), (y, height, height_px))
    )
    return Part(left, top, width, height)


def _url(image: Image.Image, suffix: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format=suffix.upper(), **options)
    return f"data:image/{suffix};base64,{base64.b64encode(stream.getvalue()).decode()}"


def encoded_within(parts: Sequence[Sequence[U8]], budget_bytes: int = SLIDER_BYTES) -> tuple[list[list[str]], int]:
    """Pictures by variant -> their addresses and the WebP quality: the best of QUALITIES that fits the budget.

    Where even the last does not, pictures at the end are left out; the first always stays.
    """
    for quality in QUALITIES:
        urls = [
            [_url(Image.fromarray(pixels), "webp", quality=quality, method=4) for pixels in variants]
            for variants in parts
        ]
        if sum(len(url) for row in urls for url in row) <= budget_bytes:
            return urls, quality
    kept, total = urls[:1], sum(map(len, urls[0]))
    for row in urls[1:]:
        total += sum(map(len, row))
        if total > budget_bytes:
            break
        kept.append(row)
    return kept, QUALITIES[-1]


def thumbnail_url(pixels: U8, times: int = 1) -> str:
    """At most `times` THUMBNAIL_SIDE_PX a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_SIDE_PX * times, THUMBNAIL_SIDE_PX * times), Image.Resampling.LANCZOS)
    return _url(image, "webp", quality=80)


def error_map_url(error: NDArray[np.float64], largest: float, colours: U8) -> str:
    """A PNG of at most MAP_SIDE_PX a side. error: (H, W), 0 to `largest` and above. colours: (64, 3), low to high.

    Reduced by the largest of each square of pixels: a small error never disappears.
    """
    step = -(-max(error.shape) // MAP_SIDE_PX)
    padded = np.pad(error, [(0, -side % step) for side in error.shape], mode="edge")
    reduced = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).max(axis=(1, 3))
    codes = np.clip(reduced / max(largest, 1e-9) * (len(colours) - 1), 0, len(colours) - 1).round().astype(np.uint8)
    image = Image.fromarray(codes, "P")
    image.putpalette(colours.tobytes())
    return _url(image, "png", optimize=True)


def block_url(pixels: NDArray[Any], block: Block) -> str:
    """A PNG of the block's exact pixels."""
    return _url(Image.fromarray(np.ascontiguousarray(block.cut(pixels))), "png", optimize=True)
