"""A calibration that took long to make is not replaced by another one by accident."""

from __future__ import annotations

from pathlib import Path

from intsr.calib.calibration import JSON_NAME, Calibration, load_calibration
from intsr.errors import CalibrationError, UsageError
from intsr.types import Bits

FIX = "give --overwrite to replace it, or choose another output"


def check_same_settings(
    folder: Path, method: str, bits: Bits, parts: tuple[str, ...], model: str, digest: str, older_digest: str
) -> bool:
    """Whether `folder` holds a calibration already: of this model, made with these settings.

    Raises UsageError where it holds another one, or one that cannot be read.
    """
    if not (folder / JSON_NAME).exists():
        return False
    try:
        known = load_calibration(folder)
    except CalibrationError as error:
        raise UsageError(folder, "holds a calibration that cannot be read", fix=FIX) from error
    there, new = _facts(known), {"method": method, "bits": str(bits), "parts": ",".join(parts)}
    if not known.belongs_to(digest, older_digest):
        there["model"] = f"{known.model} ({known.model_digest[:12]})"
        new["model"] = f"{model} ({digest[:12]})"
    different = [key for key in new if there[key] != new[key]]
    if different:
        got, expected = (", ".join(f"{key} {facts[key]}" for key in different) for facts in (there, new))
        raise UsageError(folder, f"holds a calibration with {got}", expected, FIX)
    return True


def _facts(known: Calibration) -> dict[str, str]:
    return {"method": known.method, "bits": str(known.bits), "parts": ",".join(known.parts)}
