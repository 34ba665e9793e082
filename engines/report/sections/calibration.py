"""Everything that a report says and shows of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import PASSIONSR, PhaseName
from intsr.calib.models.families.sd21 import network_of_site
from intsr.engines.inspect.calibration import inspect_calibration
from intsr.engines.report.measure.layer_order import graph_order, short_name
from intsr.engines.report.measure.reasons import reason_of_site
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.measure.variants import Say, read_rgb
from intsr.engines.report.page.embed import thumbnail_url
from intsr.engines.report.plots import calibration as plots
from intsr.engines.report.sections.section import Section
from intsr.errors import ImageError
from intsr.runtime.pictures.reader import list_pictures
from intsr.types import NETWORKS

WORST = 20
CHANNEL_PLOTS = 6
THUMBNAILS = 24
# Numbers of a layer that the page shows; its channels' are many, and drawn alone.
MEASURED = (
    "order",
    "histogram",
    "seen_min",
    "seen_max",
    "clipped_low",
    "clipped_high",
    "input_sqnr_db",
    "output_sqnr_db",
    "outlier_ratio",
    "outlier_ratio_let",
    "outlier_channels",
)


def calibration_section(request: ReportRequest, say: Say) -> Section:
    """Collect the section of a request with a calibration. Raises CalibrationError, ModelError, ImageError."""
    assert request.calibration is not None
    inspected = inspect_calibration(request.calibration)
    statistics = _measured(request, say)
    sites = {site["site"]: site for site in inspected["sites"]}
    layers = [_layer(sites[site], statistics) for site in graph_order(sites)]
    curves = load_calibration(request.calibration).curves
    facts = inspected["calibration"] | {
        "name": request.calibration.name,
        "measured_pictures": len(_pictures(request)[: request.layer_pictures]) if statistics else 0,
        "measured_tile_px": statistics.tile_px if statistics else None,
        "left_full_precision": _left_out(inspected["calibration"]["parts"]),
        "layers_by_network": _by_network(layers),
        "layers": layers,
        "phases": _phases(curves),
        "imported": load_calibration(request.calibration).folding == PASSIONSR,
    }
    section = Section(facts)
    _draw(section, layers, statistics, curves)
    if request.calibration_images is not None:
        section.art["thumbnails"] = _thumbnails(request.calibration_images, say)
    return section


@dataclass(frozen=True, slots=True)
class _Measured:
    tile_px: int
    layers: Mapping[str, Any]


def _pictures(request: ReportRequest) -> list[Path]:
    return list_pictures(request.layer_images, or_picture=True) if request.layer_images is not None else []


def _measured(request: ReportRequest, say: Say) -> _Measured | None:
    """Statistics of integer layers, where the model and pictures are given."""
    assert request.calibration is not None
    if request.model is None:
        return None
    from intsr.calib.models.open import load_model
    from intsr.engines.report.measure.layers import observe_layers, observed_tile_px

    calibration = load_calibration(request.calibration)
    if calibration.folding == PASSIONSR:
        say("layers are not measured: an imported calibration has several grids a layer")
        return None
    say(f"measuring the layers of {request.model}")
    model = load_model(request.model, request.context, request.lora)
    layers = observe_layers(model, calibration, _pictures(request), request.layer_pictures)
    return _Measured(observed_tile_px(model.spec, calibration), layers)


def _layer(site: Mapping[str, Any], measured: _Measured | None) -> dict[str, Any]:
    name, runs = site["site"], site["runs"]
    statistics = measured.layers.get(name) if measured else None
    if measured and runs == "unknown":
        # The model shows what the calibration does not.
        runs = "integer" if statistics else "float"
    values = dict(site) | {
        "short": short_name(name),
        "network": network_of_site(name),
        "runs": runs,
        "reason": reason_of_site(name, runs),
    }
    return values | ({key: getattr(statistics, key) for key in MEASURED} if statistics else {})


def _left_out(parts: Sequence[str]) -> list[str]:
    """Networks that the calibration leaves in full precision."""
    networks = {"unet": ["unet"], "vae": ["encoder", "decoder"]}
    return [name for part, names in networks.items() if part not in parts for name in names]


def _by_network(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kinds = ("integer", "float", "constant", "unknown")
    return [
        {"name": name, "layers": [layer["site"] for layer in layers if layer["network"] == name]}
        | {kind: sum((layer["network"], layer["runs"]) == (name, kind) for layer in layers) for kind in kinds}
        for name in NETWORKS
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
        }
        facts |= {"kind": phase.stage if phase.block else ""}
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
        channels = ("channel_reach", "channel_reach_let")
        reach = [{key: getattr(measured.layers[layer["site"]], key) for key in channels} for layer in extreme]
        art["channels"] = plots.channels([{**layer, **more} for layer, more in zip(extreme, reach, strict=True)])
    phases = section.facts["phases"]
    joint = {phase["name"]: curves[phase["name"]] for phase in phases if phase["joint"] and phase["steps"]}
    if joint:
        art["joint_curves"] = plots.joint_curves(joint)
    blocks = [phase for phase in phases if not phase["joint"]]
    if blocks:
        art["block_curves"] = plots.block_curves(blocks)


def _thumbnails(folder: Path, say: Say) -> list[dict[str, str]]:
    thumbnails = []
    for path in list_pictures(folder, or_picture=True)[:THUMBNAILS]:
        try:
            thumbnails.append({"name": path.name, "url": thumbnail_url(read_rgb(path))})
        except ImageError as error:
            say(f"left out: {error}")
    return thumbnails
