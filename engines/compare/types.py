"""What is compared and what comes out: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intsr.calib import methods as quantization
from intsr.calib.calibrate import parse_parts
from intsr.errors import UsageError
from intsr.runtime.measure.metrics import Scores
from intsr.types import Bits

BICUBIC, FULL_PRECISION = "bicubic", "fp"


@dataclass(frozen=True, slots=True)
class Setting:
    """What one row is calibrated with."""

    method: str
    bits: Bits
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.bits} {','.join(self.parts)}"

    @property
    def trains(self) -> bool:
        return quantization.methods()[self.method].trains


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, and on what.

    model, context, lora, tile_px: as `intsr calibrate` takes them. calibration_images: folder of low-resolution
    pictures, the first `limit` of which are used, None for all. pairs: low-resolution pictures and their originals.
    color_fix, precision: of every engine. options: further options of calibrate and their values, None for flags;
    training: more of them, for the methods that train. restart: calibrate anew whatever is there.
    """

    model: str
    context: Path | None
    tile_px: int
    settings: tuple[Setting, ...]
    calibration_images: Path
    limit: int | None
    pairs: tuple[tuple[Path, Path], ...]
    color_fix: str = "none"
    precision: str = "f32"
    options: Mapping[str, str | None] = field(default_factory=dict)
    training: Mapping[str, str | None] = field(default_factory=dict)
    restart: bool = False
    lora: Path | None = None

    def options_of(self, setting: Setting) -> dict[str, str | None]:
        return {**self.options, **(self.training if setting.trains else {})}


@dataclass(frozen=True, slots=True)
class Places:
    """Folders: of calibrations, one a setting; of pictures, one a row; and for what is removed at the end."""

    calibrations: Path
    pictures: Path
    scratch: Path


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. error: why there are no numbers, else None.

    psnr_to_fp_db: mean over the pictures of PSNR on RGB, 8 bits as written, against those of the full-precision
    engine; infinite where one is equal. psnr_y_loss_db: full precision's PSNR-Y less this one's. peak_bytes: of the
    process that calibrated.
    """

    method: str
    bits: str
    parts: tuple[str, ...]
    scores: Scores | None = None
    psnr_to_fp_db: float | None = None
    psnr_y_loss_db: float | None = None
    calibration_s: float | None = None
    peak_bytes: int | None = None
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
            **(self.scores.perceptual if self.scores else {}),
            "calibration_s": self.calibration_s,
            "peak_bytes": self.peak_bytes,
            "error": self.error,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def settings_from_text(methods: str, bits: str, parts: Sequence[str]) -> tuple[Setting, ...]:
    """`maxmin,lbq`, `w8a8,w6a6` and each of `parts`, `unet,vae` for example: all combinations. Raises UsageError."""
    named = _names(methods, "--methods")
    for name in named:
        if name not in quantization.methods():
            raise UsageError(
                "--methods", repr(name), f"some of {', '.join(quantization.methods())}, separated by commas"
            )
    widths = [Bits.parse(name) for name in _names(bits, "--bits")]
    if not all(width.quantized for width in widths):
        raise UsageError("--bits", "fp", "wXaY: full precision is a row of its own")
    chosen = [parse_parts(text) for text in parts]
    if len(set(chosen)) != len(chosen):
        raise UsageError("--parts", "the same twice", "each once")
    return tuple(Setting(method, width, part) for part in chosen for width in widths for method in named)


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) != len(names):
        raise UsageError(option, repr(text), "each once")
    return names
