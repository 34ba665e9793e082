"""Describe a calibration folder as plain data: no model is needed.

What an engine runs on integers is told by a layer's name:

    constant   the fixed timestep and context make it a number
    float      it is beside the picture or the latents
    integer    everything else
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intsr.calib.calibration.files import JSON_NAME, load_calibration
from intsr.calib.calibration.types import Calibration, Clipped, SiteQuantizer
from intsr.calib.models.families.sd21 import (
    FLOAT_SITES,
    is_constant,
    value_maker,
)
from intsr.export.fold.let_sites import explicit_sites

RUNS = ("integer", "float", "constant")


def inspect_calibration(folder: Path) -> dict[str, Any]:
    """`calibration`: what it is, and counts; `sites`: one entry a layer, in the folder's order.

    calibration.layers: how many run how, see above. calibration.let: of layers not constant or float, how many have s
    and d, how many of these fold for free, keep an explicit step, and have a shift. calibration.weights: how many
    layers have learned ranges, how many codes. calibration.most_clipped: see there. calibration.tiers: of VOLTS, how
    many layers are in each. Raises CalibrationError.
    """
    calibration = load_calibration(folder)
    runs = runs_of_sites(calibration.sites)
    sites = _sites(calibration, runs)
    placements = Counter(site["let"]["placement"] for site in sites if site["let"])
    facts = {
        "method": calibration.method,
        "bits": str(calibration.bits),
        "parts": list(calibration.parts),
        "model": calibration.model,
        "model_digest": calibration.model_digest,
        "digest": calibration.digest(),
        "pictures": calibration.pictures,
        "tile_px": calibration.tile_px,
        "seconds": calibration.seconds,
        "peak_bytes": calibration.peak_bytes,
        "sites": len(sites),
        "layers": {kind: sum(kind == value for value in runs.values()) for kind in RUNS},
        "let": {
            "sites": placements["free"] + placements["explicit"],
            "free": placements["free"],
            "explicit": placements["explicit"],
            "shifted": sum(bool(site["let"] and site["let"]["placement"] and site["let"]["shift"]) for site in sites),
        },
        "weights": {kind: sum(site["weights"] == kind for site in sites) for kind in ("ranges", "codes")},
        "perceptual": calibration.perceptual,
        "phases": list(calibration.phases),
        "most_clipped": most_clipped(calibration.clipped),
        "tiers": dict(Counter(sensitivity.tier for sensitivity in calibration.sensitivity.values())),
    }
    return {"calibration": facts, "sites": sites}


def most_clipped(clipped: Mapping[str, Clipped]) -> dict[str, Any] | None:
    """On `pictures` and on `guard`: the site that clips the largest share of its input, and that share."""
    if not clipped:
        return None
    worst = {kind: max(clipped, key=lambda site: getattr(clipped[site], kind)) for kind in ("pictures", "guard")}
    return {kind: {"site": site, "share": getattr(clipped[site], kind)} for kind, site in worst.items()}


def clipped_lines(folder: Path) -> list[str]:
    """`most_clipped` in words; none where `folder` is no calibration, or an imported one."""
    clipped = load_calibration(folder).clipped if (folder / JSON_NAME).is_file() else {}
    worst = most_clipped(clipped) or {}
    return [f"clipped, {kind}: at most {of['share']:.2%} of an input, {of['site']}'s" for kind, of in worst.items()]


def runs_of_sites(sites: Mapping[str, SiteQuantizer]) -> dict[str, str]:
    """Site -> one of RUNS."""
    return {site: _runs(site) for site in sites}


def _runs(site: str) -> str:
    return "constant" if is_constant(site) else "float" if site in FLOAT_SITES else "integer"


def _sites(calibration: Calibration, runs: Mapping[str, str]) -> list[dict[str, Any]]:
    lets = {
        site: (quantizer.let_scale, quantizer.let_shift)
        for site, quantizer in calibration.sites.items()
        if quantizer.let_scale is not None and quantizer.let_shift is not None and runs[site] == "integer"
    }
    explicit = explicit_sites(lets, [site for site in lets if not _rotates_for_free(site, calibration.sites)])
    values = []
    for site, quantizer in calibration.sites.items():
        placement = None if site not in lets else "explicit" if site in explicit else "free"
        weights = "ranges" if quantizer.weight_low is not None else None
        values.append(
            {
                "site": site,
                "runs": runs[site],
                "weight_bits": quantizer.weight_bits,
                "activation_bits": quantizer.activation_bits,
                "x_min": quantizer.x_min,
                "x_max": quantizer.x_max,
                "let": _let(quantizer, placement),
                "weights": weights or ("codes" if quantizer.weight_codes is not None else None),
                "clipped": asdict(calibration.clipped[site]) if site in calibration.clipped else None,
                "sensitivity": asdict(calibration.sensitivity[site]) if site in calibration.sensitivity else None,
            }
        )
    return values


def _rotates_for_free(site: str, sites: Mapping[str, SiteQuantizer]) -> bool:
    """Tell whether no rotation, or none that is a step of its own, is in front of a layer's LET."""
    # Heads of one width: what goes into self-attention's rows goes into cross-attention's constant value as well.
    maker = value_maker(site.replace(".attn2.", ".attn1."))
    made = sites[maker].row_rotation if maker in sites else 0
    return sites[site].rotation in (0, made)


def _let(quantizer: SiteQuantizer, placement: str | None) -> dict[str, Any] | None:
    """placement: null where the layer is float or a constant: engines then leave the LET out."""
    if quantizer.let_scale is None or quantizer.let_shift is None:
        return None
    low, high = float(quantizer.let_scale.min()), float(quantizer.let_scale.max())
    return {
        "scale_min": low,
        "scale_max": high,
        "scale_spread": high / low,
        "shift": bool(quantizer.let_shift.any()),
        "placement": placement,
    }
