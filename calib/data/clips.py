"""Clips as video networks see them: frames of films, or pictures that stand still, cut into tiles and enlarged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from intsr.calib.data.pictures import tiles_from_picture, tiles_from_pixels
from intsr.calib.models.video_spec import VideoSpec
from intsr.errors import ImageError
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
    films = sorted(path for path in place.iterdir() if path.suffix.lower() in FILM_SUFFIXES) if place.is_dir() else []
    return films or list_pictures(place)


def calibration_clips(clips: Sequence[Path], spec: VideoSpec, tile_px: int, frames: int) -> Iterator[torch.Tensor]:
    """Yield (1, 3, frames, S, S) float32 in [-1, 1], S = tile_px * upscale_factor: up to four tiles of each clip.

    Of a film its first frames, the last of them again where it is shorter; a picture stands still. Raises ImageError.
    """
    for path in clips:
        if not is_film(path):
            for tile in torch.from_numpy(tiles_from_picture(path, spec, tile_px)).split(1):
                yield tile[:, :, None].repeat(1, 1, frames, 1, 1)
            continue
        of_frames = [tiles_from_pixels(pixels, spec, tile_px) for pixels in _first_frames(path, frames)]
        of_frames += of_frames[-1:] * (frames - len(of_frames))
        yield from torch.from_numpy(np.stack(of_frames, axis=2)).split(1)


def _first_frames(path: Path, count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """(H, W, 3) uint8 each."""
    options = FilmOptions()
    with SequenceReader(path, options) if is_sequence(path) else FilmReader(path, options) as reader:
        found = [frame.pixels for frame in islice(reader.frames(), count)]
    if not found:
        raise ImageError(path, "no frame of it can be read", "a film")
    return [(pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels for pixels in found]
