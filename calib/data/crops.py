"""Training crops of the calibration pictures: a fixed set, one picture in five held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from intsr.calib.data.pictures import guard_batch, tiles_from_picture
from intsr.errors import UsageError
from intsr.types import PictureSpec, tile_step

HELD_OUT_SHARE = 5  # one picture in five judges, at least one
# Of the crops trained on, and of those that judge: one in so many is made, not photographed.
GUARD_SHARE = 5


@dataclass(frozen=True, slots=True)
class Crops:
    """train, held_out, guard: (1, 3, S, S) float32 in [-1, 1] each, as the first network is given them. Of video
    (1, 3, frames, S, S), or latents.

    guard: `made_pictures`, or none; some of them are trained on beside `train`, and others judge beside `held_out`.
    """

    train: tuple[torch.Tensor, ...]
    held_out: tuple[torch.Tensor, ...]
    guard: tuple[torch.Tensor, ...] = ()

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        return (*self.train, *self.held_out, *self.guard)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Crops:
        """Return what the function makes of each."""
        groups = (self.train, self.held_out, self.guard)
        return Crops(*(tuple(function(crop) for crop in group) for group in groups))

    @property
    def guard_indices(self) -> list[int]:
        """Indices into `all`, as the two below."""
        return list(range(len(self.train) + len(self.held_out), len(self.all)))

    @property
    def train_indices(self) -> list[int]:
        return [*range(len(self.train)), *self._guard_beside(self.train, 0)]

    @property
    def held_out_indices(self) -> list[int]:
        first = len(self.train)
        return [*range(first, first + len(self.held_out)), *self._guard_beside(self.held_out, 1)]

    def _guard_beside(self, crops: tuple[torch.Tensor, ...], parity: int) -> list[int]:
        """Every other crop of the guard, as many as make up GUARD_SHARE."""
        return self.guard_indices[parity::2][: -(-len(crops) // (GUARD_SHARE - 1))]


def without_judges(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Those to train on, and those that are held out: spread over the files as they come, so that a folder sorted by
    subject still holds out some of each. files: at least two."""
    held = max(1, len(files) // HELD_OUT_SHARE)
    judges = {min(round((i + 0.5) * len(files) / held), len(files) - 1) for i in range(held)}
    return [p for i, p in enumerate(files) if i not in judges], [p for i, p in enumerate(files) if i in judges]


def crops_from_pictures(
    pictures: Sequence[Path],
    spec: PictureSpec,
    *,
    tile_px: int,
    crop_px: int,
    count: int,
    batch: int,
    seed: int,
    guard: bool,
) -> Crops:
    """About `count` crops of crop_px low-resolution pixels a side from all pictures but the held-out ones, and a
    quarter as many from those.

    guard: with `made_pictures`. Raises UsageError for too few pictures or a crop that does not fit, and ImageError.
    """
    if len(pictures) < 2 or count < batch:
        got = f"{len(pictures)} pictures" if len(pictures) < 2 else f"{count} crops"
        raise UsageError("--images", got, f"at least 2 pictures and {batch} crops, as many as a batch")
    step_px = tile_step(spec.upscale_factor, spec.size_multiple_px)
    if crop_px > tile_px or crop_px % step_px:
        multiple = f"{spec.upscale_factor} times it a multiple of {spec.size_multiple_px}"
        raise UsageError("--crop", str(crop_px), f"at most --tile {tile_px}, and {multiple}")
    side, step = crop_px * spec.input_factor, step_px * spec.input_factor
    generator = torch.Generator().manual_seed(seed)
    groups = zip(without_judges(pictures), (count, max(batch, count // 4)), strict=True)

    def cut(tiles: torch.Tensor) -> torch.Tensor:
        steps = (tiles.shape[-1] - side) // step + 1
        tile, *corner = (int(torch.randint(limit, (), generator=generator)) for limit in (len(tiles), steps, steps))
        top, left = (step * place for place in corner)
        return tiles[tile : tile + 1, :, top : top + side, left : left + side].clone()

    def crops(paths: Sequence[Path], number: int) -> Iterator[torch.Tensor]:
        """From every picture as many, as far as that goes."""
        for index, path in enumerate(paths):
            own = number // len(paths) + (index < number % len(paths))
            if own:
                tiles = torch.from_numpy(tiles_from_picture(path, spec, tile_px))
                yield from (cut(tiles) for _ in range(own))

    train, held_out = (tuple(crops(*group)) for group in groups)
    return Crops(train, held_out, tuple(guard_batch(spec, crop_px, seed).split(1)) if guard else ())
