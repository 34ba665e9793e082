"""Lowerings of a grid are exact: checked in float64 against the quantizer's own definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer
from intsr.export.lower.write.activations import ActivationWriter, plan_grid, shifted_bias
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import QuantParams, dequantize_weight, quantize_weight
from intsr.targets.lowering import LOWERINGS

CONTAINERS = {"uint8": (0, 255), "int8": (-128, 127)}
PARAMS = st.builds(
    QuantParams,
    scale=st.sampled_from([2.0**-9, 0.25, 1.0, 3.0]),
    zero_point=st.integers(-300, 600),
    bits=st.integers(2, 8),
)


def fake_quantize_f64(x: np.ndarray, params: QuantParams) -> np.ndarray:
    codes = np.clip(np.rint(x / params.scale) + params.zero_point, 0, params.qmax)
    return (codes - params.zero_point) * params.scale


def through_container(x: np.ndarray, params: QuantParams, container: str) -> np.ndarray:
    """What the written nodes compute (Sub, Clip, Q, DQ), plus the shift that the bias gives back."""
    plan = plan_grid(params, container)
    low, high = CONTAINERS[container]
    value = x - plan.shift
    if plan.clip is not None:
        value = np.clip(value, *plan.clip)
    codes = np.clip(np.rint(value / params.scale) + plan.zero_point, low, high)
    return (codes - plan.zero_point) * params.scale + plan.shift


@given(PARAMS)
@example(QuantParams(1.0, 0, 8))
@example(QuantParams(1.0, 255, 8))
@example(QuantParams(1.0, 128, 8))
@example(QuantParams(0.25, 63, 6))
@settings(max_examples=300)
def test_the_container_gives_the_same_values(params: QuantParams) -> None:
    rng = np.random.default_rng(0)
    spread = (params.real_max - params.real_min) * 1.5
    x = rng.uniform(-spread, spread, 400) + (params.real_min + params.real_max) / 2
    # Off the ties: where a shift by an odd number of steps meets half to even, both neighbours are right.
    x = (np.floor(x / params.scale) + rng.uniform(0.51, 1.49, 400)) * params.scale
    for container in CONTAINERS:
        np.testing.assert_allclose(
            through_container(x, params, container), fake_quantize_f64(x, params), rtol=0, atol=1e-10
        )


@given(PARAMS)
def test_int8_never_has_a_zero_point(params: QuantParams) -> None:
    assert plan_grid(params, "int8").zero_point == 0


def test_few_bits_need_no_shift_and_eight_do() -> None:
    assert plan_grid(QuantParams(0.1, 20, 6), "int8").shift == 0
    assert plan_grid(QuantParams(0.1, 20, 6), "int8").clip is not None
    assert plan_grid(QuantParams(0.1, 20, 8), "int8").shift == pytest.approx((128 - 20) * 0.1)
    assert plan_grid(QuantParams(0.1, 20, 8), "int8").clip is None
    assert plan_grid(QuantParams(0.1, 128, 8), "int8").shift == 0
    assert plan_grid(QuantParams(0.1, 20, 8), "uint8").shift == 0


@given(st.integers(0, 255), st.integers(2, 8))
def test_the_bias_repays_the_shift(zero_point: int, bits: int) -> None:
    rng = np.random.default_rng(zero_point)
    params = QuantParams(0.0625, zero_point, 8)
    plan = plan_grid(params, "int8")
    codes, scale = quantize_weight(rng.normal(size=(4, 6)).astype(np.float32), bits)
    weight = dequantize_weight(codes, scale).astype(np.float64)
    x = rng.normal(size=6) * 4
    bias = rng.normal(size=4).astype(np.float32)
    shifted = shifted_bias(bias, codes, scale, plan.shift)
    assert shifted is not None
    direct = weight @ fake_quantize_f64(x, params) + bias
    integer = weight @ (through_container(x, params, "int8") - plan.shift) + shifted
    # The bias itself is stored in float32.
    np.testing.assert_allclose(integer, direct, rtol=1e-5, atol=1e-5)


def layer(site: str, params: QuantParams) -> FoldedLayer:
    codes, scale = quantize_weight(np.ones((16, 16), np.float32), 8)
    return FoldedLayer(site, codes, scale, params)


def test_padding_where_the_range_lacks_zero_is_refused() -> None:
    writer = ActivationWriter(GraphBuilder(LOWERINGS["asymmetric"]))
    with pytest.raises(ExportError, match="without 0 on a padded input"):
        writer.write("x", layer("site", QuantParams(0.1, -5, 8)), (1, 1, 1, 1))


def test_one_pair_serves_all_consumers_of_one_value() -> None:
    builder = GraphBuilder(LOWERINGS["symmetric"])
    writer, params = ActivationWriter(builder), QuantParams(0.1, 20, 8)
    nowhere, around = (0, 0, 0, 0), (1, 1, 1, 1)
    to_q = writer.write("x", layer("to_q", params), nowhere)[0]
    assert to_q == writer.write("x", layer("to_k", params), nowhere)[0]
    assert to_q != writer.write("y", layer("to_v", params), nowhere)[0]
    # A shifted, padded pair is another tensor than the unpadded one, and so is one behind a LET.
    assert to_q != writer.write("x", layer("conv", params), around)[0]
    let = replace(layer("other", params), let_scale=np.full(16, 2, np.float32))
    assert to_q != writer.write("x", let, nowhere)[0]
