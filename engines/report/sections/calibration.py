"""Everything that a report says and shows of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import PARTS, PASSIONSR, Calibration, PhaseName
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.cli.console import say
from intsr.engines.inspect.calibration import RUNS, inspect_calibration
from intsr.engines.report.measure.layer_names import REPORT_NETWORKS, graph_order, reason_of_site, short_name
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.measure.variants import read_rgb
from intsr.engines.report.page.embed import thumbnail_url
from intsr.engines.report.plots import calibration as plots
from intsr.engines.report.sections import Section
from intsr.errors import ImageError
from intsr.runtime.pictures.reader import list_pictures

WORST = 20
CHANNEL_PLOTS = 6
THUMBNAILS = 24
# Of a layer's measured numbers, those that are many, and drawn alone.
DRAWN = ("channel_reach", "channel_reach_let")


def calibration_section(request: ReportRequest, folder: Path) -> Section:
    """Collect the section. folder: the calibration's. Raises CalibrationError, ModelError, ImageError."""
    inspected, calibration = inspect_calibration(folder), load_calibration(folder)
    measured = _measured(request, calibration)
    sites = {site["site"]: site for site in inspected["sites"]}
    layers = [_layer(sites[site], measured) for site in graph_order(sites)]
    every = VIDEO_PARTS if calibration.parts == VIDEO_PARTS else PARTS
    facts = inspected["calibration"] | {
        "name": folder.name,
        "measured_pictures": measured.pictures if measured else 0,
        "measured_tile_px": measured.tile_px if measured else None,
        "left_full_precision": [part for part in every if part not in calibration.parts],
        "layers_by_network": _by_network(layers),
        "layers": layers,
        "mixed": len({layer["weight_bits"] for layer in layers if layer["runs"] == "integer"}) > 1,
        "phases": _phases(calibration.curves),
        "imported": calibration.folding == PASSIONSR,
    }
    section = Section(facts)
    _draw(section, layers, measured, calibration.curves)
    if request.calibration_images is not None:
        section.art["thumbnails"] = _thumbnails(request.calibration_images)
    return section


@dataclass(frozen=True, slots=True)
class _Measured:
    tile_px: int
    pictures: int
    # See `observe_layers`.
    layers: Mapping[str, Mapping[str, Any]]


def _measured(request: ReportRequest, calibration: Calibration) -> _Measured | None:
    """Statistics of integer layers, where the model and pictures are given."""
    if request.model is None or request.layer_images is None:
        return None
    from intsr.calib.models.open import load_model
    from intsr.engines.report.measure.layers import observe_layers, observed_tile_px

    if calibration.folding == PASSIONSR:
        say("layers are not measured: an imported calibration has several grids a layer")
        return None
    say(f"measuring the layers of {request.model}")
    model = load_model(request.model, **request.weights.arguments)
    pictures = list_pictures(request.layer_images, or_picture=True)[: request.layer_pictures]
    layers = observe_layers(model, calibration, pictures)
    return _Measured(observed_tile_px(model.spec, calibration), len(pictures), layers)


def _layer(site: Mapping[str, Any], measured: _Measured | None) -> dict[str, Any]:
    name, runs = site["site"], site["runs"]
    statistics = measured.layers.get(name, {}) if measured else {}
    return {
        **site,
        "short": short_name(name),
        "network": network_of_site(name),
        "runs": runs,
        "reason": reason_of_site(name, runs),
        **{key: value for key, value in statistics.items() if key not in DRAWN},
    }


def _by_network(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kinds = RUNS
    return [
        {"name": name, "layers": [layer["site"] for layer in layers if layer["network"] == name]}
        | {kind: sum((layer["network"], layer["runs"]) == (name, kind) for layer in layers) for kind in kinds}
        for name in REPORT_NETWORKS
        if any(layer["network"] == name for layer in layers)
    ]


def _phases(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """Every phase of training: its name, steps, and its best held-out loss over the first."""
    phases = []
    for name, points in curves.items():
        phase = PhaseName.parse(name)
        first, best = points[0][2], min(point[2] for point in points)
        gain = best / first if first > 0 and math.isfinite(best / first) else 1.0
        facts = {
            "name": name,
            "network": phase.network,
            "block": phase.block or phase.stage,
            "joint": not phase.block,
            "kind": phase.stage if phase.block else "",
        }
        phases.append({**facts, "steps": int(points[-1][0]), "gain": gain})
    return phases


def _draw(
    section: Section,
    layers: Sequence[dict[str, Any]],
    measured: _Measured | None,
    curves: Mapping[str, Sequence[Sequence[float]]],
) -> None:
    art = section.art
    integer = [layer for layer in layers if layer["runs"] == "integer"]
    if integer:
        art["ranges"] = plots.ranges(integer)
    if measured and measured.layers:
        seen = [layer for layer in integer if "output_sqnr_db" in layer]
        worst = sorted(seen, key=lambda layer: float(layer["output_sqnr_db"]))[:WORST]
        section.facts["worst_layers"] = [layer["site"] for layer in worst]
        art["sqnr"], art["outliers"] = plots.sqnr(seen), plots.outliers(seen)
        art["histograms"] = plots.histograms(worst, "plot-histograms")
        extreme = sorted(seen, key=lambda layer: -float(layer["outlier_ratio"]))[:CHANNEL_PLOTS]
        art["channels"] = plots.channels([{**layer, **measured.layers[layer["site"]]} for layer in extreme])
    phases = section.facts["phases"]
    joint = {phase["name"]: curves[phase["name"]] for phase in phases if phase["joint"] and phase["steps"]}
    if joint:
        art["joint_curves"] = plots.joint_curves(joint)
    blocks = [phase for phase in phases if not phase["joint"]]
    if blocks:
        art["block_curves"] = plots.block_curves(blocks)


def _thumbnails(folder: Path) -> list[dict[str, str]]:
    thumbnails = []
    for path in list_pictures(folder, or_picture=True)[:THUMBNAILS]:
        try:
            thumbnails.append({"name": path.name, "url": thumbnail_url(read_rgb(path))})
        except ImageError as error:
            say(f"left out: {error}")
    return thumbnails
