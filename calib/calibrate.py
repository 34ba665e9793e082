"""Calibrate a model over a folder of pictures: one plain function from model and pictures to numbers."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.calib.calibration import PARTS, Calibration
from intsr.calib.let import observe_let
from intsr.calib.maxmin import observe_maxmin
from intsr.calib.pictures import calibration_batches
from intsr.console import Stopwatch
from intsr.errors import UsageError
from intsr.types import Bits

if TYPE_CHECKING:
    import torch

    from intsr.calib.model import SRModel

W8A8 = Bits(8, 8)
METHODS = {"maxmin": observe_maxmin, "maxmin+let": observe_let}
Progress = Callable[[Iterable["torch.Tensor"]], Iterable["torch.Tensor"]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to calibrate. parts: `unet`, `vae` or both. tile_px: side of the low-resolution tiles looked at."""

    method: str = "maxmin"
    bits: Bits = W8A8
    parts: tuple[str, ...] = PARTS
    tile_px: int = 128

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError("--method", repr(self.method), f"one of {', '.join(METHODS)}")
        if not self.bits.quantized:
            raise UsageError("--bits", "fp", "wXaY: full precision needs no calibration")


def parse_parts(text: str) -> tuple[str, ...]:
    """`unet,vae` in any order -> names in their usual order. Raises UsageError."""
    given = [name.strip() for name in text.split(",")]
    if not set(given) <= set(PARTS) or len(set(given)) != len(given):
        raise UsageError("--parts", repr(text), f"some of {', '.join(PARTS)}, separated by commas")
    return tuple(part for part in PARTS if part in given)


def calibrate(
    model: SRModel, pictures: Sequence[Path], recipe: Recipe, progress: Progress = lambda batches: batches
) -> Calibration:
    """Run the recipe's method over low-resolution `pictures`. Raises ImageError, CalibrationError."""
    watch = Stopwatch()
    batches = calibration_batches(pictures, model.spec, recipe.tile_px)
    sites = METHODS[recipe.method](model, progress(batches), recipe.bits, recipe.parts)
    return Calibration(
        method=recipe.method,
        bits=recipe.bits,
        parts=recipe.parts,
        model=model.spec.name,
        model_digest=model.digest,
        pictures=len(pictures),
        tile_px=recipe.tile_px,
        seconds=round(watch.seconds, 3),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        sites=sites,
    )
