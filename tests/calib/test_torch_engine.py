"""What an engine is compared with is what it computes: seen from ONNX Runtime, which shares no code with torch."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.methods.maxmin import observe_maxmin
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.engines.verify.agreement import verify
from intsr.engines.verify.reference import open_reference, reference_for_verification, reference_from_calibration
from intsr.export.graphs import OnnxExport, is_weight_only
from intsr.export.pipeline import export_model
from intsr.targets.lowering import LOWERINGS
from intsr.types import NETWORKS, Bits, WeightOptions


class GraphNetwork:
    def __init__(self, folder: Path, entry: Any) -> None:
        options = onnxruntime.SessionOptions()
        # Its optimizer would quantize what is multiplied by integer weights.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(folder / entry.member, options)
        self.input, self.output = entry.input, entry.output

    def run(self, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = self.session.run(None, {self.input.name: x})[0]
        return y


class Graphs(nullcontext):
    """An export in the place of an opened engine."""

    tile_px, precision, network_names = 16, "f32", NETWORKS

    def __init__(self, export: OnnxExport, folder: Path) -> None:
        super().__init__(self)
        self.network = {entry.name: GraphNetwork(folder, entry) for entry in export.networks}.__getitem__
        self.manifest = SimpleNamespace(
            bits=export.bits,
            calibration_digest=export.calibration_digest,
            synthetic=False,
            target="onnxruntime",
            chunk=None,
        )


@pytest.fixture(scope="module")
def four_bits(tiny_model: SRModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    """Integer weights of 8 bits and activations of 4, and where it is saved."""
    bits, generator = Bits.parse("w8a4"), torch.Generator().manual_seed(3)
    batches = [torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2)]
    sites = observe_maxmin(tiny_model, batches, bits, ("unet", "vae"))
    calibration = Calibration("maxmin", bits, ("unet", "vae"), "tiny", tiny_model.digest, 2, 16, 0.0, 0, sites)
    folder = tmp_path_factory.mktemp("w8a4") / "calibration"
    save_calibration(calibration, folder)
    return calibration, folder


@pytest.fixture(scope="module")
def weight_only(
    tiny_model: SRModel, four_bits: tuple[Calibration, Path], tmp_path_factory: pytest.TempPathFactory
) -> Graphs:
    folder = tmp_path_factory.mktemp("onnx")
    return Graphs(export_model(tiny_model, four_bits[0], LOWERINGS["weight-only-f32"], 16, folder), folder)


def test_a_weight_only_engine_agrees_with_its_calibration(
    tiny_folder: Path, four_bits: tuple[Calibration, Path], weight_only: Graphs
) -> None:
    folder, digest = four_bits[1], weight_only.manifest.calibration_digest
    x = np.random.default_rng(5).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    found = []
    for floats in (True, False):
        reference, _ = reference_for_verification(
            str(folder), str(tiny_folder), tile_px=16, calibration_digest=digest, weight_only=floats
        )
        result = verify(weight_only, reference, [("x", x)])
        found.append(min(network.psnr_db for network in (*result.networks, result.end_to_end)))
    # Its calibration has grids of four bits for activations, which the engine never reads.
    assert found[0] > 120 > 40 > found[1], found


def test_verify_asks_the_engine_what_its_activations_are(
    *,
    intsr: Any,
    tiny_folder: Path,
    four_bits: tuple[Calibration, Path],
    weight_only: Graphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr("intsr.runtime.engine.open_engine", lambda *_, **__: weight_only)
    monkeypatch.setattr("intsr.bundle.read_manifest", lambda _: weight_only.manifest)
    given = ("--against", four_bits[1], "--model", tiny_folder, "--images", tmp_path, "--json")
    code, out, err = intsr("verify", "weight-only.engine", *given)
    assert code == 0 and json.loads(out)["end_to_end"]["psnr_db"] > 100, err
    two_models = ("--against", tiny_folder, *given[2:])
    code, _, err = intsr("verify", "weight-only.engine", *two_models)
    assert code == 2 and "--model: given; expected only with a calibration" in err


def test_which_bits_are_weight_only() -> None:
    assert [is_weight_only(bits) for bits in ("w8a16", "w8a32", "w8a8", "w8a6", "fp")] == [True, True, *[False] * 3]


def test_the_reference_of_bench_takes_a_context(tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"context": torch.randn(1, 5, 24)}, tmp_path / "c.safetensors")
    x = np.random.default_rng(2).normal(0, 1, (1, 4, 32, 32)).astype(np.float32)
    own, other = (
        open_reference(str(tiny_folder), 16, None, WeightOptions(context)).networks[1].run(x)
        for context in (None, tmp_path / "c.safetensors")
    )
    assert not np.allclose(own, other, atol=1e-3)


def test_flat_pictures_keep_their_digits_however_they_lie_in_memory(tiny_model: SRModel) -> None:
    """torch's GroupNorm of channels-last tensors cancels where nothing varies: float64 is the witness."""
    reference = reference_from_calibration(tiny_model, None, 16)
    flat = np.full((1, 64, 64, 3), 0.9, np.float32).transpose(0, 3, 1, 2)
    assert not flat.flags.c_contiguous
    networks = reference_networks(tiny_model)
    x, exact = flat, torch.from_numpy(flat).double()
    for name in ("encoder", "unet", "decoder"):
        with torch.no_grad():
            exact = copy.deepcopy(networks[name]).double()(exact)
        x = reference.network(name).run(x)
        np.testing.assert_allclose(x, exact.numpy(), atol=2e-4 * float(exact.abs().max()), err_msg=name)
