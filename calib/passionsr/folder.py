"""Imported quantizers in a calibration folder: facts in its JSON under one key, arrays among its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from intsr.calib.passionsr.types import OfficialAttention, OfficialLayer, arrays_of, facts_of, from_parts
from intsr.errors import CalibrationError

# A folder has this key only where the calibration was imported.
OFFICIAL_KEY = "official"
TYPES: dict[str, type] = {"layers": OfficialLayer, "attentions": OfficialAttention}
# `layers` and `attentions`, by site each.
Official: TypeAlias = dict[str, Mapping[str, Any]]


def official_facts(official: Official) -> dict[str, Any]:
    """What the folder's JSON says under OFFICIAL_KEY."""
    return {kind: {site: facts_of(q) for site, q in quantizers.items()} for kind, quantizers in official.items()}


def official_tensors(official: Official) -> dict[str, NDArray[Any]]:
    """What goes among the folder's tensors."""
    return {
        _prefix(site) + name: array
        for quantizers in official.values()
        for site, quantizer in quantizers.items()
        for name, array in arrays_of(quantizer).items()
    }


def take_official(values: Any, tensors: dict[str, NDArray[Any]], folder: Path) -> Official:
    """The reverse of both; tensors that belong here are taken out of `tensors`. Raises CalibrationError."""
    if values is None:
        return {}
    if (
        not isinstance(values, dict)
        or set(values) != set(TYPES)
        or not all(isinstance(v, dict) for v in values.values())
    ):
        raise CalibrationError(folder, f"{OFFICIAL_KEY} is not valid", " and ".join(TYPES), "import again")
    own: dict[str, dict[str, NDArray[Any]]] = {}
    for key in [key for key in tensors if f".{OFFICIAL_KEY}." in key]:
        site, _, name = key.rpartition(f".{OFFICIAL_KEY}.")
        own.setdefault(site, {})[name] = tensors.pop(key)
    known = {site for sites in values.values() for site in sites}
    if set(own) != known:
        raise CalibrationError(folder, f"tensors without facts: {min(set(own) ^ known)}", "both", "import again")
    official: Official = {}
    for kind, cls in TYPES.items():
        try:
            official[kind] = {site: from_parts(cls, facts, own[site]) for site, facts in values[kind].items()}
        except (TypeError, ValueError) as error:
            raise CalibrationError(folder, f"{OFFICIAL_KEY} {kind}: {error}", fix="import again") from error
    return official


def _prefix(site: str) -> str:
    return f"{site}.{OFFICIAL_KEY}."
