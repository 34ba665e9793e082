"""Clips made of photographs: they stand still, pan, turn and zoom, or something moves across them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from degradations import UPSCALE_FACTOR, reduce_bicubic, reduce_mixed
from numpy.typing import NDArray
from pictures import PERMUTED_SHARE
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("still", "pan", "turn", "cut-out")
KIND_SHARES = (0.2, 0.35, 0.2, 0.25)
MAX_SPEED_PX, MAX_TURN_DEGREES, MAX_ZOOM = 6.0, 1.5, 0.02  # a frame
# Clips that are blurred, compressed and the like besides; those with a sensor's noise, of up to so many levels.
MIXED_SHARE, NOISY_SHARE, MAX_NOISE = 0.15, 0.6, 3.0
MARGIN_PX = 32  # cut away after degrading, so that no frame shows a kernel at its border

Pixels = NDArray[np.uint8]


def moving_clip(pictures: Sequence[Pixels], frames: int, side_px: int, rng: np.random.Generator, kind: str) -> Pixels:
    """(frames, side_px, side_px, 3) uint8 of one of `KINDS`."""
    background = _camera(_choose(pictures, rng), frames, side_px, rng, "still" if kind == "cut-out" else kind)
    if kind == "cut-out":
        background = _with_cut_out(background, _choose(pictures, rng), rng)
    clip = np.stack([np.asarray(frame) for frame in background])
    clip = clip[..., rng.permutation(3)] if rng.random() < PERMUTED_SHARE else clip
    clip = np.rot90(clip, rng.integers(4), (1, 2))
    return np.ascontiguousarray(clip[:, :, ::-1] if rng.integers(2) else clip)


def degraded_clip(
    originals: Pixels, noise: float, rng: np.random.Generator, mixed_share: float = 0.0
) -> tuple[Pixels, Pixels, Pixels]:
    """(low resolution, enlarged by bicubic, originals), (frames, H, W, 3) uint8 each, without the margin.

    noise: a sensor's, its deviation in levels of the low resolution. All frames are degraded alike but for noise:
    they are one tall picture to `degradations`.
    """
    frames, side = originals.shape[:2]
    tall = Image.fromarray(originals.reshape(-1, side, 3))
    low = reduce_mixed(tall, rng) if rng.random() < mixed_share else reduce_bicubic(tall)
    noisy = np.asarray(low) + rng.normal(0, noise, (low.height, low.width, 3))
    low = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    enlarged = low.resize(tall.size, Image.Resampling.BICUBIC)
    clips = (
        np.asarray(picture).reshape(frames, picture.width, picture.width, 3) for picture in (low, enlarged, tall)
    )
    edges = (MARGIN_PX // UPSCALE_FACTOR, MARGIN_PX, MARGIN_PX)
    low_clip, enlarged_clip, same = (c[:, e:-e, e:-e] for c, e in zip(clips, edges, strict=True))
    return low_clip, enlarged_clip, same


def training_clip(
    pictures: Sequence[Pixels], frames: int, side_px: int, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """(enlarged low resolution, originals), (frames, side_px, side_px, 3) uint8."""
    kind = KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]
    noise = rng.uniform(0, MAX_NOISE) if rng.random() < NOISY_SHARE else 0.0
    clip = moving_clip(pictures, frames, side_px + 2 * MARGIN_PX, rng, kind)
    return degraded_clip(clip, noise, rng, MIXED_SHARE)[1:]


def _choose(pictures: Sequence[Pixels], rng: np.random.Generator) -> Image.Image:
    weights = np.sqrt([float(picture.shape[0] * picture.shape[1]) for picture in pictures])
    return Image.fromarray(pictures[rng.choice(len(pictures), p=weights / weights.sum())])


def _camera(
    picture: Image.Image, frames: int, side_px: int, rng: np.random.Generator, kind: str
) -> list[Image.Image]:
    """Frames of a camera that moves over the picture; bicubic where they fall between its pixels."""
    speed, turn, zoom = np.zeros(2), 0.0, 0.0
    if kind == "pan":
        speed = rng.uniform(-1, 1, 2) * rng.choice((1.0, MAX_SPEED_PX))
        speed = np.rint(speed) if rng.integers(2) else speed
    if kind == "turn":
        speed = rng.uniform(-1, 1, 2)
        turn = np.deg2rad(rng.uniform(-1, 1) * MAX_TURN_DEGREES)
        zoom = rng.uniform(-1, 1) * MAX_ZOOM
    spread = 0.0 if kind == "still" else (frames - 1) / 2
    room = np.array(picture.size) - side_px
    reach = np.minimum(np.abs(speed) * spread + side_px * (abs(turn) + abs(zoom)) * spread, room / 2)
    middle = np.floor(rng.uniform(reach, room - reach)) + side_px / 2
    result = []
    for index in range(frames):
        time = index - spread if spread else 0.0
        cosine, sine = np.exp(zoom * time) * np.array([np.cos(turn * time), np.sin(turn * time)])
        x, y = middle + speed * time
        half = side_px / 2
        rows = (cosine, -sine, x - cosine * half + sine * half, sine, cosine, y - sine * half - cosine * half)
        size = (side_px, side_px)
        result.append(picture.transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC))
    return result


def _with_cut_out(frames: list[Image.Image], other: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """A piece of another picture moves across."""
    side_px = frames[0].width
    size = tuple(int(v) for v in rng.integers(side_px // 5, side_px // 2, 2))
    left, top = (int(rng.integers(0, whole - part)) for whole, part in zip(other.size, size, strict=True))
    piece = other.crop((left, top, left + size[0], top + size[1]))
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    shape = draw.ellipse if rng.integers(2) else draw.rectangle
    shape((2, 2, size[0] - 3, size[1] - 3), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(0.7))
    start, speed = rng.uniform(side_px * 0.2, side_px * 0.5, 2), rng.uniform(-1, 1, 2) * MAX_SPEED_PX
    for index, frame in enumerate(frames):
        frame.paste(piece, tuple(int(v) for v in np.rint(start + speed * index)), mask)
    return frames
