"""Training crops of the calibration pictures: a fixed set, one picture in five held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from intsr.calib.pictures import tiles_from_picture
from intsr.errors import CalibrationError, UsageError
from intsr.types import ModelSpec

HELD_OUT_SHARE = 5  # one picture in five judges, at least one


@dataclass(frozen=True, slots=True)
class Crops:
    """train, held_out: (1, 3, S, S) float32 in [-1, 1] each, already enlarged, as the encoder is given them."""

    train: tuple[torch.Tensor, ...]
    held_out: tuple[torch.Tensor, ...]

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        return (*self.train, *self.held_out)


def crops_from_pictures(
    pictures: Sequence[Path], spec: ModelSpec, tile_px: int, crop_px: int, count: int, batch: int, seed: int
) -> Crops:
    """About `count` crops of crop_px low-resolution pixels a side from all pictures but the held-out ones, and a
    quarter as many from those.

    Raises UsageError for too few pictures or a crop that does not fit, ImageError, and CalibrationError where the
    pictures show nothing.
    """
    held = max(1, len(pictures) // HELD_OUT_SHARE)
    if len(pictures) - held < 1 or count < batch:
        got = f"{len(pictures)} pictures" if len(pictures) <= held else f"{count} crops"
        raise UsageError("--images", got, f"at least 2 pictures and {batch} crops, as many as a batch")
    side = crop_px * spec.upscale_factor
    if crop_px > tile_px or side % spec.size_multiple_px:
        expected = (
            f"at most --tile {tile_px}, and {spec.upscale_factor} times it a multiple of {spec.size_multiple_px}"
        )
        raise UsageError("--crop", str(crop_px), expected)
    generator = torch.Generator().manual_seed(seed)
    # Spread over the pictures as they come, so that a folder sorted by subject still holds out some of each.
    judges = {round((i + 0.5) * len(pictures) / held) for i in range(held)}
    judges = {min(index, len(pictures) - 1) for index in judges}
    groups = (
        ([p for i, p in enumerate(pictures) if i not in judges], count),
        ([p for i, p in enumerate(pictures) if i in judges], max(batch, count // 4)),
    )
    train, held_out = (_crops(paths, spec, tile_px, side, number, generator) for paths, number in groups)
    if all(float(crop.max() - crop.min()) == 0 for crop in (*train, *held_out)):
        raise CalibrationError("--images", "pictures of one flat colour", "photographs with detail")
    return Crops(train, held_out)


def _crops(
    pictures: Sequence[Path], spec: ModelSpec, tile_px: int, side: int, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """`count` crops, from every picture as many, as far as that goes."""
    crops = []
    for index, path in enumerate(pictures):
        number = count // len(pictures) + (index < count % len(pictures))
        if not number:
            continue
        tiles = torch.from_numpy(tiles_from_picture(path, spec, tile_px))
        steps = (tiles.shape[-1] - side) // spec.size_multiple_px + 1
        for _ in range(number):
            tile, top, left = (
                int(torch.randint(limit, (), generator=generator)) for limit in (len(tiles), steps, steps)
            )
            top, left = top * spec.size_multiple_px, left * spec.size_multiple_px
            crops.append(tiles[tile : tile + 1, :, top : top + side, left : left + side].clone())
    return tuple(crops)
