"""Exporting from a source, one network at a time: the same files, and never two networks at once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from folding import Folded

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.modules import layers_of
from intsr.calib.models.open import ModelSource, SRModel, open_model
from intsr.export.pipeline import export_model
from intsr.targets import lowering_from_name
from intsr.targets.lowering import LOWERINGS

TILE_PX = 16


@pytest.fixture(scope="module")
def source(tiny_folder: Path) -> ModelSource:
    return open_model(str(tiny_folder))


@pytest.mark.parametrize(("lowering", "calibrated"), [("asymmetric", False), ("symmetric-rtx", True)])
def test_the_same_files_as_of_a_whole_model(
    source: ModelSource,
    tiny_model: SRModel,
    tiny_calibration: Calibration,
    tmp_path: Path,
    lowering: str,
    calibrated: bool,
) -> None:
    calibration = tiny_calibration if calibrated else None
    for name, model in (("source", source), ("model", tiny_model)):
        export_model(model, calibration, LOWERINGS[lowering], TILE_PX, tmp_path / name)
    for path in (tmp_path / "model").iterdir():
        assert (tmp_path / "source" / path.name).read_bytes() == path.read_bytes(), path.name


def test_networks_are_loaded_one_after_another(
    source: ModelSource, tiny_calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intsr.calib.models import open as module

    load, alive, most = module.load_network, weakref.WeakSet[Any](), []

    def watched(*arguments: Any) -> Any:
        most.append(len(alive))
        network = load(*arguments)
        alive.add(network)
        return network

    monkeypatch.setattr(module, "load_network", watched)
    # What goes, goes by itself: gigabytes are not left to when the collector thinks of them.
    gc.disable()
    try:
        export_model(source, tiny_calibration, lowering_from_name("cpu"), TILE_PX, tmp_path / "onnx")
    finally:
        gc.enable()
    assert (most, len(alive)) == ([0, 0, 0], 0)


def test_a_folded_network_keeps_no_float_weight_beside_its_codes(tiny_model: SRModel, tiny_folded: Folded) -> None:
    network = tiny_folded["unet"]
    assert len(network.layers) > 30
    for site, layer in layers_of(network.module).items():
        if site in network.layers:
            assert layer.weight.untyped_storage().nbytes() <= 4 and torch.isnan(layer.weight).all()
        else:
            assert torch.isfinite(layer.weight).all()
    assert all(torch.isfinite(parameter).all() for parameter in tiny_model.unet.parameters())
