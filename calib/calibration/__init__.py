"""A calibration: numbers only, by site, on disk as `calibration.json`, `ranges.safetensors` and `curves.json`.

A site is a Conv2d or Linear by its diffusers name below `unet.` or `vae.`, for example
`unet.down_blocks.0.resnets.0.conv1`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from intsr.calib.passionsr.folder import OFFICIAL_KEY, Official, official_facts, official_tensors, take_official
from intsr.calib.passionsr.types import OfficialAttention, OfficialLayer
from intsr.errors import CalibrationError, UsageError
from intsr.files import atomic_folder
from intsr.kernels.quantizer import QuantParams
from intsr.types import MAX_BITS, MIN_BITS, Bits, is_kind

SCHEMA_VERSION = 3
JSON_NAME, TENSORS_NAME, CURVES_NAME = "calibration.json", "ranges.safetensors", "curves.json"
PARTS = ("unet", "vae")
# Of calibration.json: keys, and the types that JSON may give them.
KINDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "method": (str,),
    "bits": (str,),
    "parts": (list,),
    "model": (str,),
    "model_digest": (str,),
    "pictures": (int,),
    "tile_px": (int,),
    "seconds": (int, float),
    "peak_bytes": (int,),
    "sites": (dict,),
    "clipped": (dict,),
}
KEYS = set(KINDS)
END_NAMES = ("x_min", "x_max")
# Optional tensors of a site, with their dtypes: a pair is there whole or not at all.
ARRAY_DTYPES: dict[str, type[np.generic]] = {
    "let_scale": np.float32,
    "let_shift": np.float32,
    "weight_low": np.float32,
    "weight_high": np.float32,
    "weight_codes": np.int8,
    "weight_scale": np.float32,
}
ARRAY_PAIRS = (("let_scale", "let_shift"), ("weight_low", "weight_high"), ("weight_codes", "weight_scale"))
SITE_KEYS = {"weight_bits", "activation_bits"}


@dataclass(frozen=True, slots=True, eq=False)
class SiteQuantizer:
    """What calibration learned of one layer: its input's range [x_min, x_max] and the bits of input and weights.

    let_scale, let_shift: s > 0 and d of LET, float32 (Cin,), or None for none. The range is then that of
    x~ = (x - d) / s, and everything said of weights is of W~ = s W.
    weight_low, weight_high: learned range of each output channel's weights, float32 (Cout,), or None: each channel's
    own smallest and largest.
    weight_codes, weight_scale: weights already rounded, int8 in W's shape and float32 (Cout,), W~ = codes * scale, or
    None. Methods that learn how to round, or change the weights, give these.
    """

    x_min: float
    x_max: float
    activation_bits: int
    weight_bits: int
    let_scale: NDArray[np.float32] | None = None
    let_shift: NDArray[np.float32] | None = None
    weight_low: NDArray[np.float32] | None = None
    weight_high: NDArray[np.float32] | None = None
    weight_codes: NDArray[np.int8] | None = None
    weight_scale: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits"):
            bits = getattr(self, name)
            if not (isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
                raise ValueError(f"{name} is {bits!r}, expected {MIN_BITS} to {MAX_BITS}")
        if not (math.isfinite(self.x_min) and math.isfinite(self.x_max) and self.x_min <= self.x_max):
            raise ValueError(f"range [{self.x_min}, {self.x_max}] is not finite and ordered")
        for pair in ARRAY_PAIRS:
            self._check_pair(*pair)
        if self.let_scale is not None and not np.all(self.let_scale > 0):
            raise ValueError("let_scale must be positive")
        if (
            self.weight_low is not None
            and self.weight_high is not None
            and np.any(self.weight_low > self.weight_high)
        ):
            raise ValueError("weight_low must not be above weight_high")
        if self.weight_codes is not None:
            reach = 127 if self.weight_bits == MAX_BITS else 2**self.weight_bits - 1
            if self.weight_low is not None or np.abs(self.weight_codes.astype(np.int16)).max(initial=0) > reach:
                raise ValueError(f"weight_codes must lie within {reach} and exclude a learned weight range")

    def _check_pair(self, first_name: str, second_name: str) -> None:
        first, second = getattr(self, first_name), getattr(self, second_name)
        if (first is None) != (second is None):
            raise ValueError(f"{first_name} and {second_name} belong together")
        if first is None or second is None:
            return
        for name, value in ((first_name, first), (second_name, second)):
            if value.dtype != ARRAY_DTYPES[name] or not np.all(np.isfinite(value)):
                raise ValueError(f"{name} must be finite {np.dtype(ARRAY_DTYPES[name]).name}")
            value.flags.writeable = False
        if second.ndim != 1 or len(first) != len(second):
            raise ValueError(f"{first_name} and {second_name} must be of one length")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors that are there, by name."""
        return {name: value for name in ARRAY_DTYPES if (value := getattr(self, name)) is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SiteQuantizer) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        arrays = [
            (name, value.shape, hashlib.sha256(value.tobytes()).digest()) for name, value in self.arrays().items()
        ]
        return (self.x_min, self.x_max, self.activation_bits, self.weight_bits, *arrays)

    def activation_params(self) -> QuantParams:
        return QuantParams.from_range(self.x_min, self.x_max, self.activation_bits)


@dataclass(frozen=True, slots=True)
class Clipped:
    """Shares of one layer's input that lie outside its grid, 0 to 1: on pictures, and on `made_pictures`."""

    pictures: float
    guard: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges of every layer of `parts` of the model whose digest is `model_digest`.

    seconds and peak_bytes: what calibrating took. pictures: how many. tile_px: side of the low-resolution tiles.
    curves: learning curves, phase -> [[step, loss, loss on held-out pictures], ...].
    clipped: of every layer that engines run on integers; none of an imported calibration.
    official_layers, official_attentions: by site, of an imported calibration alone: engines then compute with these,
    and `sites` is their summary, each layer on one grid.
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
    curves: Mapping[str, list[list[float]]] = field(default_factory=dict)
    clipped: Mapping[str, Clipped] = field(default_factory=dict)
    official_layers: Mapping[str, OfficialLayer] = field(default_factory=dict)
    official_attentions: Mapping[str, OfficialAttention] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise CalibrationError("calibration", f"parts {self.parts}", f"some of {PARTS}")
        for name in ("sites", "clipped", "official_layers", "official_attentions"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def official(self) -> Official:
        """Both kinds of imported quantizers, as a folder names them."""
        return {"layers": self.official_layers, "attentions": self.official_attentions}

    def digest(self) -> str:
        """SHA-256 over everything that changes an engine; how long calibrating took does not."""
        facts = [self.method, str(self.bits), list(self.parts), self.model_digest]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for site, q in self.sites.items():
            digest.update(json.dumps([site, repr(q.x_min), repr(q.x_max), q.activation_bits, q.weight_bits]).encode())
            for name, array in q.arrays().items():
                digest.update(f"{name}{array.shape}".encode() + array.tobytes())
        for kind, quantizers in self.official().items():
            for site, quantizer in quantizers.items():
                digest.update(f"{kind} {site} {quantizer.digest()}".encode())
        return digest.hexdigest()

    def belongs_to(self, digest: str, older_digest: str = "") -> bool:
        """Whether it was made for the model with these digests; the older one may be ""."""
        return self.model_digest in (digest, older_digest or digest)

    def check_model(self, digest: str, name: str, older_digest: str = "") -> None:
        """Raises CalibrationError where this calibration belongs to another model. older_digest: see `digests`."""
        if not self.belongs_to(digest, older_digest):
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
        "clipped": {site: asdict(shares) for site, shares in calibration.clipped.items()},
    }
    if calibration.official_layers:
        values[OFFICIAL_KEY] = official_facts(calibration.official())
    with atomic_folder(folder, marker=JSON_NAME) as temporary:
        tensors: dict[str, NDArray[Any]] = {}
        for site, quantizer in calibration.sites.items():
            tensors |= {f"{site}.{end}": np.array(getattr(quantizer, end), np.float64) for end in END_NAMES}
            tensors |= {f"{site}.{name}": array for name, array in quantizer.arrays().items()}
        tensors |= official_tensors(calibration.official())
        save_file(tensors, temporary / TENSORS_NAME)
        (temporary / JSON_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        if calibration.curves:
            (temporary / CURVES_NAME).write_text(json.dumps(dict(calibration.curves)) + "\n", encoding="utf-8")


def load_calibration(folder: Path) -> Calibration:
    """Read a folder that `save_calibration` wrote. Raises CalibrationError; unknown keys are errors."""
    try:
        values = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_NAME)
        curves_path = folder / CURVES_NAME
        curves = json.loads(curves_path.read_text(encoding="utf-8")) if curves_path.exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        fix = "make one with: intsr calibrate MODEL --images DIR -o DIR"
        raise CalibrationError(folder, f"cannot be read ({error})", "a calibration folder", fix) from error
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CalibrationError(folder, "another schema version", str(SCHEMA_VERSION), "calibrate again")
    if set(values) - {OFFICIAL_KEY} != KEYS:
        difference = sorted((set(values) - {OFFICIAL_KEY}) ^ KEYS)
        raise CalibrationError(folder / JSON_NAME, f"keys unknown or missing: {', '.join(difference)}")
    _check_kinds(values, curves, folder)
    official = take_official(values.get(OFFICIAL_KEY), tensors, folder)
    expected = {f"{site}.{end}" for site in values["sites"] for end in END_NAMES}
    optional = {f"{site}.{name}" for site in values["sites"] for name in ARRAY_DTYPES}
    if not expected <= set(tensors) <= expected | optional:
        expected |= set(tensors) & optional
        difference = sorted(set(tensors) ^ expected)
        raise CalibrationError(folder / TENSORS_NAME, f"tensors unknown or missing: {', '.join(difference[:3])}")
    sites = {site: _site_from_mapping(site, entry, tensors, folder) for site, entry in values["sites"].items()}
    plain = {key: values[key] for key in KEYS - {"schema_version", "bits", "parts", "sites", "clipped"}}
    return Calibration(
        bits=_bits(values["bits"], folder),
        parts=tuple(values["parts"]),
        sites=sites,
        curves=curves,
        clipped={site: _clipped(site, entry, folder) for site, entry in values["clipped"].items()},
        official_layers=official.get("layers", {}),
        official_attentions=official.get("attentions", {}),
        **plain,
    )


def _check_kinds(values: Mapping[str, Any], curves: Any, folder: Path) -> None:
    for key, kinds in KINDS.items():
        if not is_kind(values[key], *kinds):
            got, expected = f"{key} {values[key]!r}", f"a JSON {kinds[-1].__name__}"
            raise CalibrationError(folder / JSON_NAME, got, expected, "calibrate again")
    if not all(isinstance(part, str) for part in values["parts"]):
        raise CalibrationError(folder / JSON_NAME, f"parts {values['parts']!r}", f"some of {PARTS}")
    if not isinstance(curves, dict):
        raise CalibrationError(folder / CURVES_NAME, f"a JSON {type(curves).__name__}", "an object")
    for phase, curve in curves.items():
        rows = curve if isinstance(curve, list) else [curve]
        if not all(isinstance(row, list) and all(is_kind(x, int, float) for x in row) for row in rows):
            raise CalibrationError(folder / CURVES_NAME, f"{phase} is no curve", "rows of numbers", "calibrate again")


def _clipped(site: str, entry: Any, folder: Path) -> Clipped:
    shares = entry if isinstance(entry, dict) else {}
    if set(shares) != {"pictures", "guard"} or not all(isinstance(v, float) and 0 <= v <= 1 for v in shares.values()):
        raise CalibrationError(folder / JSON_NAME, f"clipped: {entry!r} for {site}", "two shares from 0 to 1")
    return Clipped(**shares)


def _bits(text: str, folder: Path) -> Bits:
    try:
        return Bits.parse(text)
    except UsageError as error:
        raise CalibrationError(folder / JSON_NAME, f"bits {text!r}", error.expected, "calibrate again") from error


def _site_from_mapping(site: str, entry: Any, tensors: Mapping[str, Any], folder: Path) -> SiteQuantizer:
    if not isinstance(entry, dict) or set(entry) != SITE_KEYS:
        raise CalibrationError(folder / JSON_NAME, f"{entry!r} for {site}", f"{sorted(SITE_KEYS)}")
    try:
        return SiteQuantizer(
            x_min=float(tensors[f"{site}.x_min"]),
            x_max=float(tensors[f"{site}.x_max"]),
            activation_bits=entry["activation_bits"],
            weight_bits=entry["weight_bits"],
            **{name: tensors.get(f"{site}.{name}") for name in ARRAY_DTYPES},
        )
    except (TypeError, ValueError) as error:
        raise CalibrationError(folder, f"{site}: {error}", fix="calibrate again") from error
