"""Engines of few bits: packed codes, float branches, rotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builds import built_in_this_process
from folding import fold
from low_bits import with_bits, with_branches, with_rotations

from intsr.bundle import Bundle
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.calib.models.phases import in_phases
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.engines.inspect.engine import inspect_engine
from intsr.engines.verify.agreement import verify
from intsr.engines.verify.reference import TorchReference, torch_networks
from intsr.export.fold.fold import fake_quantized
from intsr.export.pipeline import export_model
from intsr.runtime.backends.codes import are_packed, unpacked
from intsr.runtime.engine import open_engine
from intsr.targets import target_from_name
from intsr.targets.lowering import LOWERINGS
from intsr.types import Bits

TILE_PX = 16


def compiled(model: SRModel, calibration: Calibration, target: str, folder: Path, name: str) -> Path:
    lowering = LOWERINGS[target_from_name(target).lowering]
    export_model(model, calibration, lowering, TILE_PX, folder / f"{name}.onnx")
    with built_in_this_process():
        compile_engine(folder / f"{name}.onnx", folder / f"{name}.engine", BuildOptions(target), precision="f32")
    return folder / f"{name}.engine"


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
@pytest.mark.parametrize("kind", ["branches", "rotations"])
def test_engines_agree_with_the_reference(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, target: str, kind: str
) -> None:
    calibration = with_bits(tiny_calibration, Bits(4, 8))
    change = with_branches if kind == "branches" else with_rotations
    calibration = replace(
        calibration, sites=change(dict(calibration.sites), in_phases(tiny_model, calibration.phases))
    )
    path = compiled(tiny_model, calibration, target, tmp_path, kind)
    modules = {name: fake_quantized(network) for name, network in fold(tiny_model, calibration).items()}
    reference = TorchReference(torch_networks(modules, tiny_model, TILE_PX))
    x = np.random.default_rng(6).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    with open_engine(path, precision="f32") as engine:
        result = verify(engine, reference, [("0.png", x)])
    assert all(network.psnr_db > 30 for network in result.networks), result
    build = inspect_engine(path, layers=False)["manifest"]["build"]
    assert ("branches" in build) is (kind == "branches")
    if kind == "branches":
        assert 0 < build["branches"]["mac_share"] < 0.3 and 0 < build["branches"]["parameter_share"] < 0.3


@pytest.mark.parametrize("target", [pytest.param("cpu", marks=pytest.mark.slow), "onnxruntime"])
def test_files_are_as_small_as_their_bits(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, target: str
) -> None:
    weights = {}
    for bits in (8, 4, 2):
        calibration = with_bits(tiny_calibration, Bits(bits, 8))
        path = compiled(tiny_model, calibration, target, tmp_path, f"w{bits}")
        with Bundle(path) as bundle:
            name = next(name for name in bundle.sizes_bytes() if name.startswith("unet."))
            with bundle.member(name) as view:
                assert are_packed(view) is (bits < 8)
                whole = len(unpacked(view, name)) if bits < 8 else len(view)
                weights[bits] = whole - len(view)
        members = {member["name"]: member for member in inspect_engine(path, layers=False)["members"]}
        codes = members[name].get("codes", {})
        assert set(codes) == ({str(bits)} if bits < 8 else set())
    # Two bits of eight more are saved of every code; the graph beside them is as small either way.
    assert weights[2] - weights[4] == pytest.approx(codes["2"] / 4, rel=0.02)
