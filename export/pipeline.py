"""From a model, and perhaps a calibration, to ONNX graphs: the one way that commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from intsr.calib.calibration.types import PASSIONSR, Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import bits_of_site, part_of_network
from intsr.calib.models.open import ModelSource, SRModel
from intsr.calib.models.phases import in_phases, wide_upsamplers
from intsr.calib.models.sites import sites_of_model
from intsr.export.fold.fold import FoldedNetwork, fold_network
from intsr.export.fold.passionsr import fold_passionsr_network
from intsr.export.fold.specialize import specialize
from intsr.export.graphs import OnnxExport, write_export
from intsr.targets.lowering import Lowering
from intsr.types import Bits


def fold_networks(model: ModelSource | SRModel, calibration: Calibration | None) -> Iterator[FoldedNetwork]:
    """Fold encoder, UNet and decoder, those that there are, one after another; no calibration means full precision.

    Of a ModelSource one network is held at a time, and never twice in float32. Raises CalibrationError where the
    calibration is of another model, at once; ExportError, CalibrationError and ModelError on the way.
    """
    if calibration is not None:
        calibration.check_model(model.digest, model.spec.name)
    # No variable holds a network here: it is gone before the next one is loaded.
    return (_fold(name, model, calibration) for name in model.spec.networks)


@torch.no_grad()
def _fold(name: str, model: ModelSource | SRModel, calibration: Calibration | None) -> FoldedNetwork:
    part = part_of_network(name)
    if calibration is not None and calibration.folding == PASSIONSR:
        return fold_passionsr_network(name, model.load(part), calibration)
    phases = calibration.phases if calibration is not None and part in calibration.parts else None
    return fold_network(specialize(name, in_phases(model.load(part), phases)), calibration)


def static_calibration(source: ModelSource, bits: Bits, parts: tuple[str, ...], tile_px: int) -> Calibration:
    """Each output channel's own largest weight, and no picture: a calibration for weight-only engines alone.

    The activations' ranges are [0, 0]; `Lowering.activation` `float` never reads them. One part is held at a time.
    """
    sites: dict[str, SiteQuantizer] = {}
    phases: list[str] = []
    for part in parts:
        loaded = source.load(part)
        phases += wide_upsamplers(loaded)
        for site in sites_of_model(loaded, (part,)):
            weight_bits, activation_bits = bits_of_site(site, bits)
            sites[site] = SiteQuantizer(0.0, 0.0, activation_bits, weight_bits)
    return Calibration(
        "static", bits, parts, source.spec.name, source.digest, 0, tile_px, 0.0, 0, sites, phases=tuple(phases)
    )


def export_model(
    model: ModelSource | SRModel,
    calibration: Calibration | None,
    lowering: Lowering,
    tile_px: int,
    folder: Path,
    *,
    on_network: Callable[[str], None] = lambda name: None,
    further_tiles: Sequence[int] = (),
) -> OnnxExport:
    """Specialize, fold and write the folder in one piece.

    on_network: told each network's name as it begins. further_tiles: sizes beside `tile_px`; all that does not depend
    on the size is done once. Raises ExportError, CalibrationError, UsageError, ModelError.
    """
    networks = fold_networks(model, calibration)
    tiles_px = (tile_px, *further_tiles)
    return write_export(
        networks, model.spec, calibration, lowering=lowering, tiles_px=tiles_px, folder=folder, on_network=on_network
    )
