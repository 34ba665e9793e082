"""Which frames are computed together: chunks of one length, whose neighbours share frames that are blended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from intsr.arrays import Array

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[F]):
    """frames: of the film, from place `start` on, as many as a chunk has, or fewer at its end."""

    start: int
    frames: tuple[F, ...]
    # Whether the film ends with it.
    is_last: bool


def chunks_of(frames: Iterable[F], length: int, overlap: int) -> Iterator[Chunk[F]]:
    """Cut frames into chunks: each begins `length - overlap` frames behind the one before. One chunk is held."""
    coming, start = iter(frames), 0
    held = deque(islice(coming, length))
    # One frame ahead: to know where the film ends.
    ahead = list(islice(coming, 1))
    while held:
        yield Chunk(start, tuple(held), not ahead)
        if not ahead:
            return
        for _ in range(length - overlap):
            held.popleft()
        held.extend(ahead)
        held.extend(islice(coming, length - len(held)))
        ahead = list(islice(coming, 1))
        start += length - overlap


def first_chunk_for(frame: int, length: int, overlap: int) -> int:
    """Return the place of the first chunk that a frame depends on: the one before its own, where they share it."""
    own = frame // (length - overlap)
    is_shared = frame - own * (length - overlap) < overlap
    return max(own - is_shared, 0) * (length - overlap)


def fade_in(overlap: int) -> Array:
    """Return the weights (overlap,) float32 of a chunk's first frames; the chunk before has what is left to 1."""
    positions = (np.arange(overlap) + 0.5) / max(overlap, 1)
    return (0.5 - 0.5 * np.cos(np.pi * positions)).astype(np.float32)
