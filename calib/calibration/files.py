"""A calibration on disk: `calibration.json`, `ranges.safetensors` and `curves.json` in one folder.

The records of an import are split: numbers and truth values under the JSON key `official`, arrays among the tensors,
as `SITE.official.NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from intsr.calib.calibration.types import ARRAY_DTYPES, Calibration, Clipped, Record, Sensitivity, SiteQuantizer
from intsr.errors import CalibrationError, UsageError
from intsr.files import atomic_folder
from intsr.json_files import read_json
from intsr.types import Bits

SCHEMA_VERSION = 3
JSON_NAME, TENSORS_NAME, CURVES_NAME = "calibration.json", "ranges.safetensors", "curves.json"
RANGE_NAMES = ("x_min", "x_max")
IMPORTED_KEY = "official"
OVERWRITE_FIX = "give --overwrite to replace it, or choose another output"


@dataclass(frozen=True, slots=True)
class _SiteFacts:
    weight_bits: int
    activation_bits: int
    rotation: int = 0
    row_rotation: int = 0


@dataclass(frozen=True, slots=True)
class _Header:
    """`calibration.json`."""

    schema_version: int
    method: str
    bits: str
    parts: list[str]
    model: str
    model_digest: str
    pictures: int
    tile_px: int
    seconds: float
    peak_bytes: int
    sites: dict[str, _SiteFacts]
    clipped: dict[str, Clipped]
    perceptual: str = ""
    phases: list[str] = field(default_factory=list)
    sensitivity: dict[str, Sensitivity] = field(default_factory=dict)
    # kind -> site -> everything of its record that is no array; the key is there for an imported calibration alone.
    official: dict[str, dict[str, dict[str, bool | int]]] = field(default_factory=dict)


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write the folder in one piece; an older calibration there is replaced.

    Raises UsageError where the folder holds something else.
    """
    header = _Header(
        schema_version=SCHEMA_VERSION,
        method=calibration.method,
        bits=str(calibration.bits),
        parts=list(calibration.parts),
        model=calibration.model,
        model_digest=calibration.model_digest,
        pictures=calibration.pictures,
        tile_px=calibration.tile_px,
        seconds=calibration.seconds,
        peak_bytes=calibration.peak_bytes,
        sites={
            site: _SiteFacts(q.weight_bits, q.activation_bits, q.rotation, q.row_rotation)
            for site, q in calibration.sites.items()
        },
        clipped=dict(calibration.clipped),
        perceptual=calibration.perceptual,
        phases=list(calibration.phases),
        sensitivity=dict(calibration.sensitivity),
        official={
            kind: {site: _select(record, arrays=False) for site, record in records.items()}
            for kind, records in calibration.imported.items()
        },
    )
    values = asdict(header)
    for key in (IMPORTED_KEY, "perceptual", "phases", "sensitivity"):
        if not values[key]:
            del values[key]
    for site in values["sites"].values():
        for name in ("rotation", "row_rotation"):
            if not site[name]:
                del site[name]
    tensors: dict[str, NDArray[Any]] = {}
    for site, quantizer in calibration.sites.items():
        tensors |= {f"{site}.{end}": np.array(getattr(quantizer, end), np.float64) for end in RANGE_NAMES}
        tensors |= {f"{site}.{name}": array for name, array in quantizer.arrays().items()}
    for records in calibration.imported.values():
        for site, record in records.items():
            arrays = _select(record, arrays=True)
            tensors |= {f"{site}.{IMPORTED_KEY}.{name}": array for name, array in arrays.items()}
    with atomic_folder(folder, marker=JSON_NAME) as temporary:
        save_file(tensors, temporary / TENSORS_NAME)
        (temporary / JSON_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        if calibration.curves:
            (temporary / CURVES_NAME).write_text(json.dumps(dict(calibration.curves)) + "\n", encoding="utf-8")


def load_calibration(folder: Path) -> Calibration:
    """Read a folder that `save_calibration` wrote. Raises CalibrationError; unknown keys are errors."""
    path, fix = folder / JSON_NAME, "make one with: intsr calibrate MODEL --images DIR -o DIR"
    header = read_json(path, _Header, error=CalibrationError, version=SCHEMA_VERSION, fix=fix)
    curves: dict[str, list[list[float]]] = {}
    if (folder / CURVES_NAME).exists():
        curves = read_json(folder / CURVES_NAME, dict[str, list[list[float]]], error=CalibrationError, fix=fix)
    try:
        tensors = load_file(folder / TENSORS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise CalibrationError(folder, f"cannot be read ({error})", "a calibration folder", fix) from error
    try:
        bits = Bits.parse(header.bits)
    except UsageError as error:
        raise CalibrationError(path, f"bits {header.bits!r}", error.expected, "calibrate again") from error
    imported = _take_imported(header.official, tensors, folder)
    expected = {f"{site}.{end}" for site in header.sites for end in RANGE_NAMES}
    optional = {f"{site}.{name}" for site in header.sites for name in ARRAY_DTYPES}
    if not expected <= set(tensors) <= expected | optional:
        difference = sorted((expected - set(tensors)) | (set(tensors) - expected - optional))
        raise CalibrationError(folder / TENSORS_NAME, f"tensors unknown or missing: {', '.join(difference[:3])}")
    return Calibration(
        method=header.method,
        bits=bits,
        parts=tuple(header.parts),
        model=header.model,
        model_digest=header.model_digest,
        pictures=header.pictures,
        tile_px=header.tile_px,
        seconds=header.seconds,
        peak_bytes=header.peak_bytes,
        sites={site: _site_quantizer(site, known, tensors, folder) for site, known in header.sites.items()},
        curves=curves,
        clipped=header.clipped,
        perceptual=header.perceptual,
        phases=tuple(header.phases),
        sensitivity=header.sensitivity,
        imported=imported,
    )


def check_same_settings(
    folder: Path, *, method: str, bits: Bits, parts: tuple[str, ...], model: str, digest: str
) -> bool:
    """Tell whether `folder` holds a calibration of this model already, made with these settings.

    Raises UsageError where it holds another one, or one that cannot be read: what took long to make is not replaced
    by accident.
    """
    if not (folder / JSON_NAME).exists():
        return False
    try:
        known = load_calibration(folder)
    except CalibrationError as error:
        raise UsageError(folder, "holds a calibration that cannot be read", fix=OVERWRITE_FIX) from error
    there = {"method": known.method, "bits": str(known.bits), "parts": ",".join(known.parts)}
    new = {"method": method, "bits": str(bits), "parts": ",".join(parts)}
    if known.model_digest != digest:
        there["model"] = f"{known.model} ({known.model_digest[:12]})"
        new["model"] = f"{model} ({digest[:12]})"
    different = [key for key in new if there[key] != new[key]]
    if different:
        got, expected = (", ".join(f"{key} {facts[key]}" for key in different) for facts in (there, new))
        raise UsageError(folder, f"holds a calibration with {got}", expected, OVERWRITE_FIX)
    return True


def _select(record: Record, *, arrays: bool) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, np.ndarray) is arrays}


def _take_imported(
    facts: Mapping[str, Mapping[str, Mapping[str, bool | int]]], tensors: dict[str, NDArray[Any]], folder: Path
) -> dict[str, dict[str, Record]]:
    """Join the records' two halves; arrays that belong to them are taken out of `tensors`."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for key in [key for key in tensors if f".{IMPORTED_KEY}." in key]:
        site, _, name = key.rpartition(f".{IMPORTED_KEY}.")
        arrays.setdefault(site, {})[name] = tensors.pop(key)
    known = {site for sites in facts.values() for site in sites}
    if set(arrays) != known:
        raise CalibrationError(folder, f"tensors without facts: {min(set(arrays) ^ known)}", "both", "import again")
    return {kind: {site: {**own, **arrays[site]} for site, own in sites.items()} for kind, sites in facts.items()}


def _site_quantizer(site: str, known: _SiteFacts, tensors: Mapping[str, Any], folder: Path) -> SiteQuantizer:
    arrays: dict[str, Any] = {name: tensors.get(f"{site}.{name}") for name in ARRAY_DTYPES}
    try:
        x_min, x_max = (float(tensors[f"{site}.{end}"]) for end in RANGE_NAMES)
        return SiteQuantizer(x_min, x_max, **asdict(known), **arrays)
    except (TypeError, ValueError) as error:
        raise CalibrationError(folder, f"{site}: {error}", fix="calibrate again") from error
