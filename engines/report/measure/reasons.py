"""Why a layer is not integer, in words. Needs nothing of the compiler: engines are reported on without it."""

from __future__ import annotations

from intsr.calib.models.families.sd21 import MIN_INTEGER_CHANNELS, NARROW_NAMES, PICTURE_SITES

REASONS = {
    "constant": "Not in the engine: the fixed timestep and prompt make it a constant.",
    "picture": "Full precision: it reads or writes the picture itself, three channels.",
    "float": f"Full precision: fewer than {MIN_INTEGER_CHANNELS} channels, where an integer kernel gains nothing.",
    "unknown": f"Full precision if the latents have fewer than {MIN_INTEGER_CHANNELS} channels, which nothing in "
    "this calibration shows.",
    "builder": "The builder chose so.",
}


def reason_of_site(site: str, runs: str) -> str:
    """Say why a calibrated layer stays float; '' if it is integer. runs: as `inspect_calibration` says."""
    if runs == "integer":
        return ""
    return REASONS["picture" if runs == "float" and site in PICTURE_SITES else runs]


def reason_of_engine_layer(name: str) -> str:
    """Say why an integer engine's plan has a layer in floating point."""
    if name in PICTURE_SITES:
        return REASONS["picture"]
    return REASONS["float" if name.rpartition(".")[2] in NARROW_NAMES else "builder"]
