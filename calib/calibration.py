"""A calibration: numbers only, by site, on disk as a folder of `calibration.json` and `ranges.safetensors`.

A site is a Conv2d or Linear by its diffusers name below `unet.` or `vae.`, for example
`unet.down_blocks.0.resnets.0.conv1`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from intsr.errors import CalibrationError
from intsr.files import atomic_folder
from intsr.kernels.quantizer import QuantParams
from intsr.types import MAX_BITS, MIN_BITS, Bits

SCHEMA_VERSION = 1
JSON_NAME, TENSORS_NAME = "calibration.json", "ranges.safetensors"
PARTS = ("unet", "vae")
KEYS = {
    "schema_version",
    "method",
    "bits",
    "parts",
    "model",
    "model_digest",
    "pictures",
    "tile_px",
    "seconds",
    "peak_bytes",
    "sites",
}
LET_NAMES = ("let_scale", "let_shift")
SITE_KEYS = {"weight_bits", "activation_bits"}


@dataclass(frozen=True, slots=True)
class SiteQuantizer:
    """What calibration learned of one layer: its input's range [x_min, x_max] and the bits of input and weights.

    let_scale, let_shift: s > 0 and d of LET, one float32 value an input channel, or empty for none. The range is then
    that of x~ = (x - d) / s.
    """

    x_min: float
    x_max: float
    activation_bits: int
    weight_bits: int
    let_scale: tuple[float, ...] = ()
    let_shift: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits"):
            bits = getattr(self, name)
            if not (isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
                raise ValueError(f"{name} is {bits!r}, expected {MIN_BITS} to {MAX_BITS}")
        if not (math.isfinite(self.x_min) and math.isfinite(self.x_max) and self.x_min <= self.x_max):
            raise ValueError(f"range [{self.x_min}, {self.x_max}] is not finite and ordered")
        let = (*self.let_scale, *self.let_shift)
        if len(self.let_scale) != len(self.let_shift) or not all(math.isfinite(value) for value in let):
            raise ValueError("let_scale and let_shift must be finite and of one length")
        if not all(value > 0 for value in self.let_scale):
            raise ValueError("let_scale must be positive")

    def activation_params(self) -> QuantParams:
        return QuantParams.from_range(self.x_min, self.x_max, self.activation_bits)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges of every layer of `parts` of the model whose digest is `model_digest`.

    seconds and peak_bytes: what calibrating took. pictures: how many. tile_px: side of the low-resolution tiles.
    """

    method: str
    bits: Bits
    parts: tuple[str, ...]
    model: str
    model_digest: str
    pictures: int
    tile_px: int
    seconds: float
    peak_bytes: int
    sites: Mapping[str, SiteQuantizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise CalibrationError("calibration", f"parts {self.parts}", f"some of {PARTS}")
        object.__setattr__(self, "sites", MappingProxyType(dict(self.sites)))

    def digest(self) -> str:
        """SHA-256 over everything that changes an engine; how long calibrating took does not."""
        facts = [self.method, str(self.bits), list(self.parts), self.model_digest]
        sites = [
            [site, *map(repr, (q.x_min, q.x_max, q.let_scale, q.let_shift)), q.activation_bits, q.weight_bits]
            for site, q in self.sites.items()
        ]
        return hashlib.sha256(json.dumps([facts, sites]).encode()).hexdigest()

    def check_model(self, digest: str, name: str) -> None:
        """Raises CalibrationError where this calibration belongs to another model."""
        if digest != self.model_digest:
            raise CalibrationError(
                f"calibration of {self.model}",
                f"made for a model with digest {self.model_digest[:12]}",
                f"{digest[:12]} ({name})",
                f"calibrate this model: intsr calibrate {name} --images DIR -o DIR",
            )


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write the folder in one piece; an older calibration there is replaced.

    Raises UsageError where the folder holds something else.
    """
    order = list(calibration.sites)
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "method": calibration.method,
        "bits": str(calibration.bits),
        "parts": list(calibration.parts),
        "model": calibration.model,
        "model_digest": calibration.model_digest,
        "pictures": calibration.pictures,
        "tile_px": calibration.tile_px,
        "seconds": calibration.seconds,
        "peak_bytes": calibration.peak_bytes,
        "sites": {
            site: {"weight_bits": q.weight_bits, "activation_bits": q.activation_bits}
            for site, q in calibration.sites.items()
        },
    }
    with atomic_folder(folder, marker=JSON_NAME) as temporary:
        tensors = {
            f"{site}.{end}": np.array(getattr(calibration.sites[site], end), np.float64)
            for site in order
            for end in ("x_min", "x_max")
        }
        for site in order:
            if calibration.sites[site].let_scale:
                for name in LET_NAMES:
                    tensors[f"{site}.{name}"] = np.array(getattr(calibration.sites[site], name), np.float32)
        save_file(tensors, temporary / TENSORS_NAME)
        (temporary / JSON_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_calibration(folder: Path) -> Calibration:
    """Read a folder that `save_calibration` wrote. Raises CalibrationError; unknown keys are errors."""
    try:
        values = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        fix = "make one with: intsr calibrate MODEL --images DIR -o DIR"
        raise CalibrationError(folder, f"cannot be read ({error})", "a calibration folder", fix) from error
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CalibrationError(folder, "another schema version", str(SCHEMA_VERSION), "calibrate again")
    if set(values) != KEYS:
        difference = sorted(set(values) ^ KEYS)
        raise CalibrationError(folder / JSON_NAME, f"keys unknown or missing: {', '.join(difference)}")
    if not isinstance(values["sites"], dict):
        raise CalibrationError(folder / JSON_NAME, "sites is no object", fix="calibrate again")
    expected = {f"{site}.{end}" for site in values["sites"] for end in ("x_min", "x_max")}
    expected |= {f"{site}.{name}" for site in values["sites"] for name in LET_NAMES if f"{site}.let_scale" in tensors}
    if set(tensors) != expected:
        difference = sorted(set(tensors) ^ expected)
        raise CalibrationError(folder / TENSORS_NAME, f"tensors unknown or missing: {', '.join(difference[:3])}")
    sites = {site: _site_from_mapping(site, entry, tensors, folder) for site, entry in values["sites"].items()}
    plain = {key: values[key] for key in KEYS - {"schema_version", "bits", "parts", "sites"}}
    return Calibration(bits=Bits.parse(values["bits"]), parts=tuple(values["parts"]), sites=sites, **plain)


def _site_from_mapping(site: str, entry: Any, tensors: Mapping[str, Any], folder: Path) -> SiteQuantizer:
    if not isinstance(entry, dict) or set(entry) != SITE_KEYS:
        raise CalibrationError(folder / JSON_NAME, f"{entry!r} for {site}", f"{sorted(SITE_KEYS)}")
    try:
        return SiteQuantizer(
            x_min=float(tensors[f"{site}.x_min"]),
            x_max=float(tensors[f"{site}.x_max"]),
            activation_bits=entry["activation_bits"],
            weight_bits=entry["weight_bits"],
            let_scale=tuple(map(float, tensors.get(f"{site}.let_scale", ()))),
            let_shift=tuple(map(float, tensors.get(f"{site}.let_shift", ()))),
        )
    except (TypeError, ValueError) as error:
        raise CalibrationError(folder, f"{site}: {error}", fix="calibrate again") from error
