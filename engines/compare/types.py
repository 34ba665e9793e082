"""What is compared and what comes out: plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from intsr.calib import methods as quantization
from intsr.calib.calibrate import Recipe, parse_parts
from intsr.calib.learn.method import PICTURE
from intsr.calib.learn.train import TrainingOptions
from intsr.errors import UsageError
from intsr.runtime.measure.metrics import Scores
from intsr.types import NO_WEIGHT_OPTIONS, Bits, WeightOptions

BICUBIC, FULL_PRECISION = "bicubic", "fp"
# What stands beside fewer bits: as fast, and made in one pass.
COMPANION, COMPANION_BITS = "maxmin+let", Bits(8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared, and on what."""

    # As `intsr calibrate` takes them.
    model: str
    weights: WeightOptions = NO_WEIGHT_OPTIONS
    # One a row.
    recipes: tuple[Recipe, ...]
    # A folder of low-resolution pictures, the first `limit` of which are used, None for all.
    calibration_images: Path
    limit: int | None = None
    # Low-resolution pictures and their originals.
    pairs: tuple[tuple[Path, Path], ...]
    # Of every engine.
    color_fix: str = "none"
    precision: str = "f32"
    # Calibrate anew, whatever is there.
    restart: bool = False

    @property
    def tile_px(self) -> int:
        """The tile that all of them have."""
        return self.recipes[0].tile_px


def label(recipe: Recipe) -> str:
    """`maxmin w8a8 unet,vae`, for example."""
    return f"{recipe.method} {recipe.bits} {','.join(recipe.parts)}"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that a comparison writes into."""

    # One calibration a recipe.
    calibrations: Path
    # One folder of pictures a row.
    pictures: Path
    # Removed at the end.
    scratch: Path


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    method: str
    bits: str
    parts: tuple[str, ...]
    scores: Scores | None = None
    # The mean over the pictures of PSNR on RGB, 8 bits as written, against those of the full-precision engine;
    # infinite where one is equal.
    psnr_to_fp_db: float | None = None
    # Full precision's PSNR-Y less this one's.
    psnr_y_loss_db: float | None = None
    # The mean over the pictures of `perceptual_distance` to those of the full-precision engine.
    distance_to_fp: float | None = None
    # Of the engine's file.
    engine_bytes: int | None = None
    calibration_s: float | None = None
    # Of the process that calibrated.
    peak_bytes: int | None = None
    # Why there are no numbers.
    error: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """JSON-able: what is infinite or missing is None."""
        return {
            "method": self.method,
            "bits": self.bits,
            "parts": list(self.parts),
            "psnr_y_db": _finite(self.scores.psnr_y_db if self.scores else None),
            "ssim_y": self.scores.ssim_y if self.scores else None,
            "psnr_to_fp_db": _finite(self.psnr_to_fp_db),
            "psnr_y_loss_db": _finite(self.psnr_y_loss_db),
            "distance_to_fp": self.distance_to_fp,
            "engine_bytes": self.engine_bytes,
            **(self.scores.perceptual if self.scores else {}),
            "calibration_s": self.calibration_s,
            "peak_bytes": self.peak_bytes,
            "error": self.error,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def recipes_from_options(
    methods: str, bits: str, parts: Sequence[str], tile_px: int, symmetric: bool, **training: Any
) -> tuple[Recipe, ...]:
    """Combine `maxmin,lbq`, `w8a8,w6a6` and each of `parts`, for example `unet,vae`, in every way.

    Beside fewer than 8 bits there is always a row of 8, which are as fast. training: fields of `Recipe` and
    `TrainingOptions`, for the methods that train. Raises UsageError.
    """
    named = _names(methods, "--methods")
    for name in named:
        if name not in quantization.methods(PICTURE):
            known = ", ".join(quantization.methods(PICTURE))
            raise UsageError("--methods", repr(name), f"some of {known}, separated by commas")
    widths = [Bits.parse(name) for name in _names(bits, "--bits")]
    if not all(width.quantized for width in widths):
        raise UsageError("--bits", "fp", "wXaY: full precision is a row of its own")
    chosen = [parse_parts(text) for text in parts]
    if len(set(chosen)) != len(chosen):
        raise UsageError("--parts", "the same twice", "each once")
    names = {field.name for field in fields(TrainingOptions)}
    options = TrainingOptions(**{name: value for name, value in training.items() if name in names})
    rest = {name: value for name, value in training.items() if name not in names}

    def recipe(part: tuple[str, ...], width: Bits, method: str) -> Recipe:
        shared = Recipe(method=method, bits=width, parts=part, tile_px=tile_px, symmetric=symmetric)
        if not shared.trains:
            return shared
        own = {name: value for name, value in rest.items() if name != "rank" or shared.stages.rank}
        return replace(shared, training=options, **own)

    companion = [(part, COMPANION_BITS, COMPANION) for part in chosen if COMPANION_BITS not in widths]
    return tuple(recipe(*chosen_one) for chosen_one in (*companion, *product(chosen, widths, named)))


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) != len(names):
        raise UsageError(option, repr(text), "each once")
    return names
