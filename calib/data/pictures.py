"""Pictures as networks see them: read, cut into tiles, enlarged, scaled to [-1, 1], by the runtime's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from intsr.calib.data.made_pictures import guard_pictures, smooth_tiles
from intsr.calib.models.video_spec import VideoSpec
from intsr.errors import ImageError, UsageError
from intsr.runtime.pictures.reader import read_pixels
from intsr.runtime.tiles.enlarge import Enlarger, unit_part
from intsr.runtime.tiles.grid import pad_to_square, plan_tiles
from intsr.types import PictureSpec

# Large pictures are sampled, not swept: a few tiles each, spread over the picture, from many pictures.
MAX_TILES = 4


def check_picture(path: Path) -> None:
    """Raises ImageError for one that cannot be read whole, is not opaque, or of one flat colour."""
    pixels = read_pixels(path)
    if (pixels == pixels[:1, :1]).all():
        raise ImageError(path, "shows nothing: one flat colour", "a picture with detail")


def usable_pictures(
    pictures: Sequence[Path],
    limit: int | None,
    skip: Callable[[ImageError], None] = lambda error: None,
    check: Callable[[Path], None] = check_picture,
) -> list[Path]:
    """In order, the first `limit` that pass the check.

    skip: told of each that is passed over. Raises ImageError or UsageError where none is left.
    """
    chosen: list[Path] = []
    errors: list[ImageError] = []
    for path in pictures:
        if len(chosen) == limit:
            break
        try:
            check(path)
        except ImageError as error:
            errors.append(error)
            skip(error)
        else:
            chosen.append(path)
    if not chosen and len(errors) == 1:
        raise errors[0]
    if not chosen:
        got = f"none of its {len(errors)} pictures can be used"
        raise UsageError(pictures[0].parent, got, fix=f"the first: {errors[0]}")
    return chosen


def tiles_from_picture(path: Path, spec: PictureSpec | VideoSpec, tile_px: int) -> NDArray[np.float32]:
    """(n, 3, S, S) float32 in [-1, 1], S = tile_px * input_factor, n at most MAX_TILES.

    Pictures smaller than a tile are reflected to its size, as when they are upscaled. Raises ImageError.
    """
    levels: NDArray[Any] = read_pixels(path)
    pixels = np.rint(levels, out=levels).astype(np.uint8)
    del levels  # eight bytes for each one of pixels
    return tiles_from_pixels(pixels, spec, tile_px)


def tiles_from_pixels(pixels: NDArray[np.uint8], spec: PictureSpec | VideoSpec, tile_px: int) -> NDArray[np.float32]:
    """Cut and enlarge low-resolution (H, W, 3) uint8, as `tiles_from_picture`."""
    tiles = plan_tiles(pixels.shape[0], pixels.shape[1], tile_px, 0).tiles
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(MAX_TILES, len(tiles))).round().astype(int))
    factor = spec.input_factor
    enlarger = Enlarger(pixels, factor, spec.resize_filter)
    parts = []
    for tile in (tiles[index] for index in chosen):
        top, left, height, width = (side * factor for side in (tile.top, tile.left, tile.height, tile.width))
        # Its rows alone, which have the bits of the whole: a photograph enlarged is hundreds of megabytes.
        rows = enlarger.rows(top, top + height)
        parts.append(pad_to_square(unit_part(rows, 0, left, height, width), tile_px * factor))
    return np.stack(parts) * np.float32(2) - np.float32(1)


def calibration_batches(pictures: Iterable[Path], spec: PictureSpec, tile_px: int) -> Iterator[torch.Tensor]:
    """One batch a picture: (n, 3, S, S) float32 in [-1, 1]."""
    for path in pictures:
        yield torch.from_numpy(tiles_from_picture(path, spec, tile_px))


def guard_side_px(spec: PictureSpec | VideoSpec, tile_px: int) -> int:
    """Half a tile where networks take that: what is smooth needs no more, and costs a quarter."""
    half = tile_px // 2
    return half if tile_px == 2 * half and half * spec.upscale_factor % spec.size_multiple_px == 0 else tile_px


def guard_batch(spec: PictureSpec, side_px: int, seed: int = 0) -> torch.Tensor:
    """`guard_pictures` as networks see them: (n, 3, S, S) float32 in [-1, 1], S = side_px * input_factor."""
    pictures = guard_pictures(side_px, seed)
    return torch.from_numpy(np.concatenate([tiles_from_pixels(pixels, spec, side_px) for pixels in pictures]))


def calibration_inputs(
    pictures: Iterable[Path], spec: PictureSpec, tile_px: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and first tile of each picture: (1, 3, S, S) float32 in [-1, 1]."""
    for path in pictures:
        yield path.name, tiles_from_picture(path, spec, tile_px)[:1]


def verification_inputs(
    pictures: Sequence[Path], spec: PictureSpec, tile_px: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """`calibration_inputs`, then `smooth_tiles`, named as made: (1, 3, S, S) float32 in [-1, 1] each."""
    yield from calibration_inputs(pictures, spec, tile_px)
    for name, pixels in smooth_tiles(tile_px).items():
        yield f"(made) {name}", tiles_from_pixels(pixels, spec, tile_px)
