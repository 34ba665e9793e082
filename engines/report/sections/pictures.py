"""Everything that a report says and shows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intsr.cli.console import say
from intsr.engines.report.measure.picture_scores import (
    CROPS,
    Block,
    error_levels,
    mean_scores,
    scores_of_picture,
    smooth_scores,
    tiling_of,
    worst_blocks,
)
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.measure.variants import (
    HR,
    LR,
    Picture,
    PictureStore,
    Variant,
    make_pictures,
    reference_of,
    variants_of_request,
)
from intsr.engines.report.page import embed as files
from intsr.engines.report.plots.pictures import colour_bar, map_colours
from intsr.engines.report.sections import Section
from intsr.files import sha256_from_path
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.reader import list_pictures

# The colour scale ends where this part of all errors lies below: one pixel must not darken a whole map.
SCALE_QUANTILE = 0.999


def pictures_section(request: ReportRequest, scratch: Path) -> Section | None:
    """Collect the section; None where no variant is given. Raises UsageError, ImageError and what engines raise."""
    variants = variants_of_request(request)
    if not variants:
        return None
    store = PictureStore(scratch)
    pictures, skipped = make_pictures(request, variants, store)
    reference = reference_of(variants, request.reference)
    base = reference or next((v for v in variants if v.kind == HR), None)
    primary = next((v for v in variants if v.kind not in (LR, HR) and v is not reference), None)
    seen = list_pictures(request.calibration_images, or_picture=True) if request.calibration_images else []
    hashes = {sha256_from_path(path) for path in seen}
    scores = [
        score
        for picture in pictures
        for score in scores_of_picture(
            picture, variants, store, reference, overlap_px=request.overlap_px, calibrated_on=picture.sha256 in hashes
        )
    ]
    facts: dict[str, Any] = {
        "variants": [{key: getattr(v, key) for key in ("name", "label", "kind", "bits")} for v in variants],
        "labels": {variant.name: variant.label for variant in variants},
        "reference": reference and reference.name,
        "primary": primary and primary.name,
        "compared_with": base.name if base and primary else None,
        "scores": scores,
        "means": mean_scores(scores, variants),
        "skipped": skipped,
        "smooth_tiles": _smooth_tiles(variants, reference, request),
        "stages_ms": {v.name: _mean_stages(pictures, v.name) for v in variants if v.kind == "engine"},
    }
    section = Section(facts)
    blocks = _worst_blocks(section, pictures, (primary, base), store) if primary and base else {}
    worst = {name: max((block.rms_levels for block in found), default=0.0) for name, found in blocks.items()}
    shown = sorted(pictures, key=lambda picture: -worst.get(picture.name, 0.0))[: request.shown]
    _show_slider(section, shown, variants, store, blocks)
    if primary and base:
        _show_error_maps(section, shown, (primary, base), store)
        _show_crops(section, pictures, variants, (primary, base), store)
    _show_tiles(section, shown, variants, store, request)
    return section


def _smooth_tiles(
    variants: Sequence[Variant], reference: Variant | None, request: ReportRequest
) -> list[dict[str, Any]]:
    """Compare every other engine with the full-precision one; empty where there is no such pair."""
    others = [v for v in variants if v.kind == "engine" and v is not reference]
    if reference is None or reference.kind != "engine" or not others:
        return []
    say("comparing smooth and flat tiles")
    rows = []
    with open_engine(reference.path, request.threads, request.precision) as exact:
        for variant in others:
            with open_engine(variant.path, request.threads, request.precision) as engine:
                rows.append({"variant": variant.name, "tiles": smooth_scores(engine, exact)})
    return rows


def _mean_stages(pictures: Sequence[Picture], name: str) -> dict[str, float]:
    runs = [picture.stages_ms[name] for picture in pictures]
    return {stage: float(np.mean([run[stage] for run in runs])) for stage in runs[0]}


def _worst_blocks(
    section: Section, pictures: Sequence[Picture], compared: tuple[Variant, Variant], store: PictureStore
) -> dict[str, list[Block]]:
    """Worst blocks by picture; the facts also get where the colour scale of the error maps ends, levels."""
    blocks, ends = {}, []
    for picture in pictures:
        error = error_of(picture, compared, store)
        blocks[picture.name] = worst_blocks(picture, error)
        ends.append(float(np.quantile(error, SCALE_QUANTILE)))
    worst = sorted((block for found in blocks.values() for block in found), key=lambda block: -block.rms_levels)
    section.facts["worst_crops"] = [asdict(block) for block in worst[:CROPS]]
    section.facts["error_scale_levels"] = max(1.0, *ends) if ends else 1.0
    return blocks


def _show_slider(
    section: Section,
    shown: Sequence[Picture],
    variants: Sequence[Variant],
    store: PictureStore,
    blocks: dict[str, list[Block]],
) -> None:
    parts = [files.part_to_show(p.width_px, p.height_px, next(iter(blocks.get(p.name, [])), None)) for p in shown]
    cut = [
        [np.ascontiguousarray(part.cut(store.get(picture, variant.name))) for variant in variants]
        for picture, part in zip(shown, parts, strict=True)
    ]
    urls, quality = files.encoded_within(cut)
    section.facts["slider"] = [
        {
            "picture": picture.name,
            "width_px": picture.width_px,
            "height_px": picture.height_px,
            "part": asdict(part) if (part.width, part.height) != (picture.width_px, picture.height_px) else None,
        }
        for picture, part, _ in zip(shown, parts, urls, strict=False)
    ]
    section.facts["slider_quality"] = quality
    section.art["slider"] = [dict(zip((v.name for v in variants), row, strict=True)) for row in urls]


def error_of(picture: Picture, compared: tuple[Variant, Variant], store: PictureStore) -> NDArray[np.float64]:
    """(H, W) root mean square over R, G and B of the difference of two variants, levels of 255."""
    one, other = (store.get(picture, variant.name) for variant in compared)
    return error_levels(one, other)


def _show_error_maps(
    section: Section, shown: Sequence[Picture], compared: tuple[Variant, Variant], store: PictureStore
) -> None:
    colours, largest = map_colours(), section.facts["error_scale_levels"]
    section.art["error_maps"] = [
        {"picture": picture.name, "url": files.error_map_url(error_of(picture, compared, store), largest, colours)}
        for picture in islice(shown, len(section.facts["slider"]))
    ]
    section.art["colour_bar"] = colour_bar(largest)


def _show_crops(
    section: Section,
    pictures: Sequence[Picture],
    variants: Sequence[Variant],
    compared: tuple[Variant, Variant],
    store: PictureStore,
) -> None:
    """The worst blocks, of every variant, each with its error."""
    colours, by_name = map_colours(), {picture.name: picture for picture in pictures}
    section.art["crops"] = []
    for values in section.facts["worst_crops"]:
        block, picture = Block(**values), by_name[values["picture"]]
        cells = [(v.label, files.block_url(store.get(picture, v.name), block)) for v in variants]
        error = block.cut(error_of(picture, compared, store))
        cells.append(("Error", files.error_map_url(error, section.facts["error_scale_levels"], colours)))
        section.art["crops"].append(cells)


def _show_tiles(
    section: Section,
    shown: Sequence[Picture],
    variants: Sequence[Variant],
    store: PictureStore,
    request: ReportRequest,
) -> None:
    """The tiles of every engine's first picture that takes several: where, and how much of a seam shows."""
    engines = [variant for variant in variants if variant.manifest]
    section.art["tiles"] = []
    for picture in shown:
        plan = tiling_of(picture, engines[-1], request.overlap_px) if engines else None
        if plan is None or len(plan.tiles) < 2:
            continue
        rows = [row for row in section.facts["scores"] if row["picture"] == picture.name and row["seam_score"]]
        section.art["tiles"].append(
            {
                "picture": picture.name,
                "url": files.thumbnail_url(store.get(picture, engines[-1].name), 2),
                "width": plan.width_px,
                "height": plan.height_px,
                "tiles": plan.tiles,
                "tile_px": plan.tile_px,
                "scores": rows,
            }
        )
