"""Clips as video networks see them: frames of films, or pictures that stand still, cut into tiles and enlarged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from intsr.calib.data.crops import Crops, without_judges
from intsr.calib.data.made_pictures import guard_pictures, smooth_tiles
from intsr.calib.data.pictures import check_picture, tiles_from_picture, tiles_from_pixels
from intsr.calib.models.video_spec import VideoSpec
from intsr.errors import ImageError, UsageError
from intsr.runtime.films.names import FILM_SUFFIXES, is_film, is_sequence
from intsr.runtime.films.read import FilmReader
from intsr.runtime.films.sequence import SequenceReader
from intsr.runtime.films.types import FilmOptions
from intsr.runtime.pictures.reader import list_pictures


def list_clips(place: Path) -> list[Path]:
    """Return the films of a folder, or its pictures where it has none; a film or `frames/%06d.png` is itself.

    Raises UsageError where there is nothing.
    """
    if is_film(place):
        return [place]
    films = [path for path in place.iterdir() if path.suffix.lower() in FILM_SUFFIXES] if place.is_dir() else []
    # As of pictures, hidden files are none: some systems put one beside each that they copy.
    return sorted(path for path in films if not path.name.startswith(".") and path.is_file()) or list_pictures(place)


def check_clip(path: Path) -> None:
    """Raises ImageError for a film without a frame that can be read, UsageError for a folder that cannot be listed,
    and what `check_picture` raises.
    """
    if is_film(path):
        _first_frames(path, 1)
    else:
        check_picture(path)


def calibration_clips(clips: Sequence[Path], spec: VideoSpec, tile_px: int, frames: int) -> Iterator[torch.Tensor]:
    """Yield (1, 3, frames, S, S) float32 in [-1, 1], S = tile_px * upscale_factor: up to four tiles of each clip.

    Of a film its first frames, the last of them again where it is shorter; a picture stands still. Raises ImageError.
    """
    for path in clips:
        if not is_film(path):
            yield from torch.from_numpy(_standing(tiles_from_picture(path, spec, tile_px), frames)).split(1)
            continue
        of_frames = [tiles_from_pixels(pixels, spec, tile_px) for pixels in _first_frames(path, frames)]
        of_frames += of_frames[-1:] * (frames - len(of_frames))
        yield from torch.from_numpy(np.stack(of_frames, axis=2)).split(1)


def guard_clips(spec: VideoSpec, tile_px: int, frames: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Yield `guard_pictures` that stand still, (1, 3, frames, S, S) float32 in [-1, 1]: S of tile_px enlarged."""
    for pixels in guard_pictures(tile_px, seed):
        yield torch.from_numpy(_standing(tiles_from_pixels(pixels, spec, tile_px), frames))


def verification_clips(
    clips: Sequence[Path], spec: VideoSpec, tile_px: int, frames: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and first tile of each clip, then `smooth_tiles` that stand still: (1, 3, frames, S, S) float32 each."""
    for path in clips:
        yield path.name, next(calibration_clips([path], spec, tile_px, frames)).numpy()
    for name, pixels in smooth_tiles(tile_px).items():
        yield f"(made) {name}", _standing(tiles_from_pixels(pixels, spec, tile_px), frames)


def crops_from_clips(
    clips: Sequence[Path],
    spec: VideoSpec,
    *,
    crop_px: int,
    count: int,
    batch: int,
    frames: int,
    guard: Iterable[torch.Tensor] = (),
) -> Crops:
    """At most `count` tiles of crop_px low-resolution pixels a side, as of `calibration_clips`, from all clips but
    the held-out ones, and a quarter as many from those.

    guard: of `guard_clips`, crop_px a side. Raises UsageError for too few clips or a crop that does not fit, and
    ImageError.
    """
    if len(clips) < 2:
        raise UsageError("--images", f"{len(clips)} clip", "at least 2, of which one is held out")
    if crop_px * spec.upscale_factor % spec.size_multiple_px:
        multiple = f"{spec.upscale_factor} times it a multiple of {spec.size_multiple_px}"
        raise UsageError("--crop", str(crop_px), multiple)
    groups = zip(without_judges(clips), (count, max(batch, count // 4)), strict=True)
    train, held_out = (
        tuple(_spread(list(calibration_clips(paths, spec, crop_px, frames)), own)) for paths, own in groups
    )
    if len(train) < batch:
        raise UsageError("--images", f"{len(train)} crops", f"at least {batch}, as many as a batch", "lower --batch")
    return Crops(train, held_out, tuple(guard))


def _standing(tiles: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """(N, 3, S, S) -> (N, 3, frames, S, S), all frames the same."""
    return np.repeat(tiles[:, :, None], frames, axis=2)


def _spread(tiles: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """At most so many of them, from every clip."""
    count = min(count, len(tiles))
    return [tiles[i * len(tiles) // count] for i in range(count)]


def _first_frames(path: Path, count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """(H, W, 3) uint8 each."""
    options = FilmOptions()
    with SequenceReader(path, options) if is_sequence(path) else FilmReader(path, options) as reader:
        found = [frame.pixels for frame in islice(reader.frames(), count)]
    if not found:
        raise ImageError(path, "no frame of it can be read", "a film")
    return [(pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels for pixels in found]
