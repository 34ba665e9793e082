"""What a report says first: what it is about, and the few numbers that matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import fmean
from typing import Any

from intsr.engines.report.page.render import decibels, mebibytes, megabytes, milliseconds, times
from intsr.types import SYNTHETIC_NOTE

Facts = Mapping[str, Any]
TIMINGS = {"bench": "median of a benchmark", "report": "single runs on these pictures"}


def head_of(pictures: Facts | None, calibration: Facts | None, engines: Facts | None, models: Sequence[Facts]) -> Any:
    """`title`, `facts` (pairs of words), `key_numbers`, `warnings`. models: manifests of the engines, in order."""
    manifest = next((m for m in models if m["bits"] != "fp"), models[0] if models else {})
    source: Facts = manifest or calibration or {}
    model = source.get("model", "")
    bits = source.get("bits")
    what = "full precision" if bits == "fp" else " ".join(filter(None, (source.get("method"), bits)))
    facts = {
        "Model": model,
        "Method": source.get("method") if source.get("method") != "none" else "",
        "Bits": bits,
        "Scale": f"×{manifest['upscale_factor']}" if manifest else "",
        "Target": manifest.get("target"),
        # Without what a library's own build appends to its version.
        "Library": f"{manifest['library']} {manifest['library_version'].partition('-')[0]}" if manifest else "",
        "Tile": f"{source['tile_px']} px" if "tile_px" in source else "",
        "Overlap": f"{manifest['overlap_px']} px" if manifest else "",
        "Colour fix": manifest.get("color_fix"),
        "Licence": manifest.get("licence"),
        "IntSR": version("intsr"),
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    warnings = [f"{model}: {SYNTHETIC_NOTE}"] if any(m["synthetic"] for m in models) else []
    digests = {m["calibration_digest"] for m in models if m["bits"] != "fp"}
    if calibration and digests and calibration["digest"] not in digests:
        warnings.append("No engine here was made from this calibration: their digests differ.")
    numbers = [*_of_pictures(pictures), *_of_engines(engines), *_of_seams(pictures), *_of_calibration(calibration)]
    return {
        "title": " · ".join(filter(None, (model, what))) or "Report",
        "facts": {key: str(value) for key, value in facts.items() if value},
        "key_numbers": numbers,
        "warnings": warnings,
    }


def _number(key: str, label: str, value: float, text: str, note: str) -> dict[str, Any]:
    return {"key": key, "label": label, "value": value, "text": text, "note": note}


def _of_pictures(pictures: Facts | None) -> list[dict[str, Any]]:
    if pictures is None or pictures["primary"] is None:
        return []
    means = {mean["variant"]: mean for mean in pictures["means"]}
    mean, count = means[pictures["primary"]], means[pictures["primary"]]["pictures"]
    of = f"mean of {count} pictures" if count > 1 else "one picture"
    of += f" ({mean['left_out']} calibrated on left out)" if mean["left_out"] else ""
    numbers = []
    key = "psnr_to_reference_db"
    if mean[key] is not None:
        note = f"PSNR of {pictures['primary']} to {pictures['reference']}, RGB, {of}"
        numbers.append(_number(key, "Against full precision", mean[key], decibels(mean[key]), note))
    key = "psnr_y_db"
    if mean[key] is not None:
        others = [
            f"{label} {decibels(means[name][key])}"
            for name, label in ((pictures["reference"], "full precision"), ("lr", "bicubic"))
            if name in means and means[name][key] is not None
        ]
        note = f"PSNR-Y, {of}" + "".join(f"; {other}" for other in others)
        numbers.append(_number(key, "Against the original", mean[key], decibels(mean[key]), note))
    return numbers


def _of_seams(pictures: Facts | None) -> list[dict[str, Any]]:
    if pictures is None or pictures["primary"] is None:
        return []
    scores = {(row["picture"], row["variant"]): row["seam_score"] for row in pictures["scores"]}
    found = {
        picture: score for (picture, variant), score in scores.items() if variant == pictures["primary"] and score
    }
    if not found:
        return []
    note = "steps at tile borders; 1.00 is no seam"
    if all(scores.get((picture, "lr")) for picture in found):
        # A border that runs along an edge of the picture is none: the input has that step as well.
        found = {picture: score / scores[picture, "lr"] for picture, score in found.items()}
        note = "steps at tile borders over those of the enlarged input there; 1.00 is no seam"
    mean, worst = fmean(found.values()), max(found, key=lambda picture: found[picture])
    if len(found) > 1:
        # One picture may have much content along a line: then full precision has it, too.
        base, enlarged = scores.get((worst, pictures["reference"])), scores.get((worst, "lr"))
        beside = f", {base / enlarged:.2f} in full precision" if base and enlarged else ""
        note = f"mean of {len(found)} pictures: {note}; most in {worst}: {found[worst]:.2f}{beside}"
    return [_number("seam_score", "Seams", mean, f"{mean:.2f}", note)]


def _of_engines(engines: Facts | None) -> list[dict[str, Any]]:
    rows = [row for row in (engines or {}).get("rows", ()) if row["size_bytes"]]
    own = next((row for row in rows if row["bits"] != "fp"), rows[0] if rows else None)
    if own is None:
        return []
    base = next((row for row in rows if row["bits"] == "fp" and row["target"] == own["target"]), None)
    base = None if base is own else base
    numbers = []
    for key, label, text, better, worse in (
        ("median_ms", "Latency", milliseconds, "faster", "slower"),
        ("memory_bytes", "Memory", mebibytes, "less", "more"),
        ("size_bytes", "Engine file", megabytes, "smaller", "larger"),
    ):
        if own[key] is None:
            continue
        note = {"median_ms": TIMINGS.get(own["timing"], ""), "memory_bytes": "in opening it"}.get(key, "on disk")
        if base and base[key]:
            gain = base[key] / own[key]
            ratio = f"{times(gain)} {better}" if gain >= 1 else f"{times(1 / gain)} {worse}"
            note = f"{ratio} than full precision, {text(base[key])}; {note}"
        numbers.append(_number(key, label, own[key], text(own[key]), note))
    return numbers


def _of_calibration(calibration: Facts | None) -> list[dict[str, Any]]:
    if calibration is None:
        return []
    kinds = calibration["layers_by_network"]
    integer = sum(network["integer"] for network in kinds)
    engine = integer + sum(network["float"] for network in kinds)
    note = f"of {engine} that an engine computes; {calibration['sites'] - engine} more are constants"
    numbers = [_number("integer_layers", "Integer layers", integer, str(integer), note)]
    measured = [layer for layer in calibration["layers"] if "output_sqnr_db" in layer]
    if measured:
        worst = min(measured, key=lambda layer: float(layer["output_sqnr_db"]))
        value = worst["output_sqnr_db"]
        numbers.append(_number("worst_sqnr_db", "Lowest SQNR", value, decibels(value), worst["short"]))
    return numbers
