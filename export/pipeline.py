"""From a model, and perhaps a calibration, to three ONNX graphs: the straight way that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intsr.calib.calibration import Calibration
from intsr.calib.model import SRModel
from intsr.export.fold import FoldedModel, fold
from intsr.export.lowering import Lowering
from intsr.export.onnx_export import OnnxExport, export_onnx
from intsr.export.specialize import specialize


def folded_from_model(model: SRModel, calibration: Calibration | None) -> FoldedModel:
    """Specialize and fold; no calibration means full precision. Raises ExportError, CalibrationError."""
    return fold(specialize(model), calibration)


def export_model(
    model: SRModel,
    calibration: Calibration | None,
    lowering: Lowering,
    tile_px: int,
    folder: Path,
    on_network: Callable[[str], None] = lambda name: None,
) -> OnnxExport:
    """Specialize, fold and write. Raises ExportError, CalibrationError, UsageError."""
    return export_onnx(folded_from_model(model, calibration), lowering, tile_px, folder, on_network)
