"""x0 = g z + h e in the exported UNet, for every rule, against the rule written out in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.export.fold.specialize import specialize
from intsr.export.pipeline import export_model
from intsr.targets import lowering_from_name
from intsr.types import X0_RULES

TILE_PX = 16


def latent() -> torch.Tensor:
    return torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", X0_RULES)
def test_specialized_it_is_the_rule(tiny_model: SRModel, rule: str) -> None:
    model = replace(tiny_model, spec=replace(tiny_model.spec, x0_rule=rule, alpha_bar=0.6))
    z = latent()
    with torch.no_grad():
        e = model.unet(z, model.spec.timestep, encoder_hidden_states=model.context).sample
        expected = {
            "epsilon": (z - 0.4**0.5 * e) / 0.6**0.5,
            "v": 0.6**0.5 * z - 0.4**0.5 * e,
            "sample": e,
            "difference": z - e,
        }[rule]
        got, reference = specialize("unet", model).module(z), reference_networks(model)["unet"](z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["difference", "sample"])
@pytest.mark.parametrize("quantized", [False, True])
def test_exported_it_is_the_rule(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, rule: str, quantized: bool
) -> None:
    """The rules without a factor on z: no multiplication by 1, and no residual at all."""
    import onnx
    import onnxruntime

    model = replace(tiny_model, spec=replace(tiny_model.spec, x0_rule=rule))
    calibration = tiny_calibration if quantized else None
    export_model(model, calibration, lowering_from_name("onnxruntime"), TILE_PX, tmp_path / "onnx")
    path = tmp_path / "onnx" / "unet.onnx"
    graph = onnx.load(path).graph
    readers = [node.op_type for node in graph.node if graph.input[0].name in node.input]
    assert ("Add" in readers) == (rule == "difference") and "Mul" not in readers
    z = latent()
    (got,) = onnxruntime.InferenceSession(path).run(None, {graph.input[0].name: z.numpy()})
    with torch.no_grad():
        expected = reference_networks(model)["unet"](z).numpy()
    error = np.abs(got - expected).mean() / expected.std()
    assert error < (0.06 if quantized else 1e-5), error
