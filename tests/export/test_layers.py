"""Integer layers as the lowerings write them, and what of the trace they take together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from folding import fold
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from torch import nn
from torch.nn import functional

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork, fake_quantized
from intsr.export.lower.network import lower_network
from intsr.export.lower.write.activations import ActivationWriter
from intsr.export.lower.write.layers import LARGEST_PRODUCT, tensor_scale
from intsr.export.onnx.builder import GraphBuilder
from intsr.export.pipeline import static_calibration
from intsr.kernels.quantizer import MIN_SCALE, QuantParams, quantize_weight
from intsr.targets.lowering import LOWERINGS, Lowering
from intsr.types import Bits

RTX = LOWERINGS["symmetric-rtx-f32"]
ASYMMETRIC = QuantParams(0.03125, 20, 8)


def layer_of(module: nn.Module, site: str, params: QuantParams = ASYMMETRIC) -> FoldedLayer:
    weight = module.get_submodule(site).weight
    assert isinstance(weight, torch.Tensor)
    return FoldedLayer(site, *quantize_weight(weight.detach().numpy(), 8), params)


def lower(module: nn.Module, layers: list[FoldedLayer], lowering: Lowering, x: Any) -> tuple[ModelProto, Any, Any]:
    """The model, what ONNX Runtime makes of x with it, and what the torch reference makes of x."""
    network = FoldedNetwork("encoder", module.eval().requires_grad_(False), {layer.site: layer for layer in layers})
    model, info_in, _ = lower_network(network, lowering, x.shape)
    options = onnxruntime.SessionOptions()
    # Above it, MatMul by dequantized weights becomes an operation that rounds its activations, too.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = fake_quantized(network, lowering.activation == "float")(torch.from_numpy(x)).numpy()
    return model, session.run(None, {info_in.name: x})[0], expected


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@given(
    st.lists(st.floats(2.0**-14, 8.0, width=16), min_size=1, max_size=5),
    st.floats(2.0**-14, 4096.0),
    st.integers(1, 2000),
)
def test_the_tensors_scale_is_exact_and_never_overflows(scales: list[float], step: float, inputs: int) -> None:
    codes = np.full((len(scales), inputs), -127, np.int8)
    layer = FoldedLayer("site", codes, np.array(scales, np.float32), QuantParams(step, 0, 8))
    t = tensor_scale(layer)
    assert np.frexp(t)[0] == 0.5 and MIN_SCALE <= t <= 1
    worst = 128 * step * 127 * inputs * t
    assert worst <= LARGEST_PRODUCT or t == MIN_SCALE
    factors = np.array(scales, np.float32) / np.float32(t)
    representable = factors <= np.finfo(np.float16).max
    assert (factors[representable].astype(np.float16) == factors[representable]).all()


@pytest.mark.parametrize("let", [False, True])
@pytest.mark.parametrize("zero_point", [20, 300])
def test_a_pad_in_front_becomes_the_convolutions_own(let: bool, zero_point: int) -> None:
    torch.manual_seed(1)
    # As the VAE's: zeros below and on the right only.
    module = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 18, 3, stride=2))
    layer = layer_of(module, "1", QuantParams(0.03125, zero_point, 8))
    rng = np.random.default_rng(0)
    if let:
        s, d = (rng.uniform(*ends, 16).astype(np.float32) for ends in ((0.5, 2), (-1, 1)))
        layer = replace(layer, let_scale=s, let_shift=d)
    x = rng.uniform(layer.activation.real_min, layer.activation.real_max, (1, 16, 8, 10)).astype(np.float32)
    model, got, expected = lower(module, [layer], RTX, x)
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
    # A grid without 0 has no code for a padded zero, unless it is of x~: then padding stays where it was.
    assert kinds(model)["Pad"] == int(zero_point == 300 and not let)
    assert kinds(lower(module, [layer], LOWERINGS["symmetric-f32"], x)[0])["Pad"] == 1


class SelfAttention(nn.Module):
    """Two heads; value has a bias, query and key have none."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = (nn.Linear(32, 32, bias=False) for _ in range(2))
        self.to_v = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(1, -1, 2, 16).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shared", [True, False])
def test_projections_of_one_input_and_grid_are_one_product(shared: bool) -> None:
    torch.manual_seed(2)
    module = SelfAttention()
    other = ASYMMETRIC if shared else QuantParams(0.025, 30, 8)
    layers = [layer_of(module, site, params) for site, params in
              (("to_q", ASYMMETRIC), ("to_k", ASYMMETRIC), ("to_v", other))]  # fmt: skip
    x = np.random.default_rng(1).uniform(-1, 5, (1, 9, 32)).astype(np.float32)
    model, got, expected = lower(module, layers, RTX, x)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    # Two products are attention's own.
    assert kinds(model)["MatMul"] == (1 if shared else 3) + 2
    assert kinds(model)["QuantizeLinear"] == (1 if shared else 2)


def test_groups_are_padded_in_front() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, groups=4))
    x = np.random.default_rng(1).uniform(-0.5, 7, (1, 16, 6, 6)).astype(np.float32)
    model, got, expected = lower(module, [layer_of(module, "0")], RTX, x)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert kinds(model)["Pad"] == 1 and kinds(model)["Where"] == 0


@pytest.mark.parametrize("let", ["none", "scale", "shift"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 100))
def test_weight_only_equals_torch_with_dequantized_weights(let: str, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1))
    # A grid of no width, without 0: nothing may depend on it.
    layer = layer_of(module, "0", QuantParams(2.0**-14, 300, 8))
    if let != "none":
        s, d = (rng.uniform(*ends, 16).astype(np.float32) for ends in ((0.5, 2), (-1, 1)))
        layer = replace(layer, let_scale=s, let_shift=d if let == "shift" else None)
    x = rng.normal(size=(1, 16, 7, 9)).astype(np.float32)
    model, got, expected = lower(module, [layer], LOWERINGS["weight-only-f32"], x)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert kinds(model)["QuantizeLinear"] == 0 and kinds(model)["Pad"] == 0
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert weights["0.weight"].dtype == np.int8 and (weights["0.weight"] == layer.weight_codes).all()


def test_quantized_attention_has_no_weight_only_form() -> None:
    writer = ActivationWriter(GraphBuilder(LOWERINGS["weight-only"]))
    with pytest.raises(ExportError, match="quantized attention"):
        writer.write_grid("x", ASYMMETRIC, "attention")


def test_a_static_calibration_covers_every_layer(tiny_model: Any) -> None:
    source = SimpleNamespace(load=lambda *parts: tiny_model, spec=tiny_model.spec, digest=tiny_model.digest)
    calibration = static_calibration(source, Bits.parse("w4a8"), ("unet", "vae"), 16)  # type: ignore[arg-type]
    network = fold(tiny_model, calibration)["unet"]
    assert calibration.method == "static" and calibration.pictures == 0
    codes = network.layers["unet.mid_block.resnets.0.conv1"].weight_codes
    assert codes.min() == -7 and codes.max() == 7


@pytest.mark.parametrize(
    ("outputs", "width", "stride", "parts"),
    [(321, 12, 1, 2), (600, 9, 1, 3), (320, 12, 1, 1), (600, 8, 1, 1), (600, 12, 2, 1), (513, 24, 2, 3)],
)
def test_wide_convolutions_of_long_rows_are_written_in_parts(outputs, width, stride, parts):
    """With the same integers: what is joined is what one convolution gives."""
    torch.manual_seed(outputs)
    module = nn.Sequential(nn.Conv2d(3, outputs, 3, stride=stride, padding=1))
    x = np.random.default_rng(0).uniform(-0.5, 7, (1, 3, 4, width)).astype(np.float32)
    lowering = replace(LOWERINGS["asymmetric-cpu"], split_rows=8)
    model, got, expected = lower(module, [layer_of(module, "0")], lowering, x)
    assert kinds(model)["Conv"] == parts and kinds(model)["QuantizeLinear"] == 1
    assert kinds(model)["Concat"] == (parts > 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    _, whole, _ = lower(module, [layer_of(module, "0")], replace(lowering, split_rows=0), x)
    np.testing.assert_allclose(got, whole, rtol=1e-6, atol=1e-6)


class Gated(nn.Module):
    """As GEGLU: half of the product, times a function of the other."""

    def __init__(self, outputs: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(16, outputs, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


@pytest.mark.parametrize("bias", [True, False])
def test_halves_of_a_product_are_products(bias):
    torch.manual_seed(0)
    module = Gated(24, bias)
    x = np.random.default_rng(0).uniform(-0.5, 7, (1, 5, 16)).astype(np.float32)
    model, got, expected = lower(module, [layer_of(module, "proj")], LOWERINGS["asymmetric-cpu"], x)
    assert kinds(model)["MatMul"] == 2 and kinds(model)["Split"] == 0 and kinds(model)["QuantizeLinear"] == 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    model, got, _ = lower(module, [layer_of(module, "proj")], LOWERINGS["asymmetric"], x)
    assert kinds(model)["MatMul"] == 1 and kinds(model)["Split"] == 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
