"""From a model, and perhaps a calibration, to three ONNX graphs: the straight way that commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from intsr.calib.calibration import Calibration
from intsr.calib.models.open import ModelSource, SRModel
from intsr.export.fold.fold import FoldedModel, FoldedNetwork, fold, fold_and_release, folded_facts
from intsr.export.fold.passionsr import fold_official, fold_official_network
from intsr.export.fold.specialize import specialize
from intsr.export.graphs import OnnxExport, export_networks, export_onnx
from intsr.targets.lowering import Lowering
from intsr.types import NETWORKS


def folded_from_model(model: SRModel, calibration: Calibration | None) -> FoldedModel:
    """Specialize and fold; no calibration means full precision. Raises ExportError, CalibrationError."""
    if calibration is not None and calibration.official_layers:
        return fold_official(model, calibration)
    return fold(specialize(model), calibration)


def export_model(
    model: SRModel | ModelSource,
    calibration: Calibration | None,
    lowering: Lowering,
    tile_px: int,
    folder: Path,
    on_network: Callable[[str], None] = lambda name: None,
    further_tiles: Sequence[int] = (),
) -> OnnxExport:
    """Specialize, fold and write. Of a ModelSource one network is held at a time, and never twice in float32.

    further_tiles: sizes beside `tile_px`; all that does not depend on the size is done once.

    Raises ExportError, CalibrationError, UsageError, ModelError.
    """
    if isinstance(model, SRModel):
        return export_onnx(
            folded_from_model(model, calibration), lowering, tile_px, folder, on_network, further_tiles
        )
    facts = folded_facts(model.spec, model.digest, calibration, model.older_digest)
    return export_networks(
        facts, _folded_one_by_one(model, calibration), lowering, tile_px, folder, on_network, further_tiles
    )


def _folded_one_by_one(source: ModelSource, calibration: Calibration | None) -> Iterator[FoldedNetwork]:
    for name in NETWORKS:
        # No variable holds a network here: it is gone before the next one is loaded.
        part = "unet" if name == "unet" else "vae"
        if calibration is not None and calibration.official_layers:
            yield fold_official_network(name, source.load(part), calibration)
        else:
            yield fold_and_release(name, specialize(source.load(part)), calibration)
