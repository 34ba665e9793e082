"""What a quantized layer is written as, against the asymmetric quantizer's own definition.

The written nodes are run in float64, one by one, with the constants that the graph holds. Inputs lie off the
midpoints between codes, where a shift by an odd number of steps and half to even may go either way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch.nn import functional

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer
from intsr.export.lower.write.activations import ActivationWriter, plan_grid
from intsr.export.lower.write.borders import Window
from intsr.export.lower.write.layers import write_convolution, write_linear
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import MIN_SCALE, QuantParams
from intsr.targets.lowering import LOWERINGS
from intsr.types import TensorInfo

SIDE = (6, 5)
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Convolution:
    """kernel, stride, padding and dilation, (vertical, horizontal) each; a linear layer where `linear`."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    linear: bool = False


def padded(x: NDArray, padding: tuple[int, int]) -> NDArray:
    return np.pad(x, ((0, 0), (padding[0], padding[0]), (padding[1], padding[1])))


def run_node(op_type: str, attributes: dict[str, Any], first: NDArray, *others: NDArray) -> NDArray:
    """One node by its definition in ONNX."""
    match op_type:
        case "Pad":
            return np.pad(first, list(zip(*others[0].reshape(2, -1), strict=True)))
        case "QuantizeLinear":
            scale, zero_point = others
            assert zero_point.dtype == np.uint8 or zero_point == 0
            limits = np.iinfo(zero_point.dtype)
            return np.clip(np.rint(first / scale) + int(zero_point), limits.min, limits.max)
        case "DequantizeLinear":
            scale, zero_point = others
            columns = [1] * first.ndim
            columns[attributes.get("axis", 0)] = -1
            scale, zero_point = (v.reshape(columns) if v.ndim else v for v in (scale, zero_point.astype(np.float64)))
            return (first - zero_point) * scale
        case "Conv":
            tensors = [torch.from_numpy(np.asarray(a, np.float64)) for a in (first, *others)]
            sliding = {"stride": attributes["strides"], "dilation": attributes["dilations"]}
            return functional.conv2d(*tensors, **sliding, padding=attributes["pads"][:2]).numpy()
    elementwise = {"Mul": np.multiply, "Sub": np.subtract, "Add": np.add, "Clip": np.clip, "Where": np.where}
    return elementwise.get(op_type, np.matmul)(first, *others)


def run_graph(builder: GraphBuilder, result: str, x: F64) -> tuple[F64, float]:
    """The value `result`, and the largest of the biases that are among the constants."""
    x_info, y_info = (TensorInfo(name, (1,), "float32") for name in "xy")
    graph = builder.model("probe", [x_info], [(result, y_info)]).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer} | {"x": x}
    values |= {name: v.astype(np.float64) for name, v in values.items() if v.dtype == np.float32}
    for node in graph.node[:-1]:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values[node.output[0]] = run_node(node.op_type, attributes, *(values[name] for name in node.input))
    return values[result], max(np.abs(v).max() for name, v in values.items() if name.startswith("site.bias"))


@dataclass(frozen=True, slots=True)
class Case:
    """A layer, its bias, and an input off the midpoints."""

    layer: FoldedLayer
    bias: NDArray[np.float32]
    x: F64


def make_case(params: QuantParams, shape: Convolution, let: str, seed: int) -> Case:
    """let: `none`, `scale` or `shift`. Numbers are such that float32 holds the constants of the graph exactly."""
    rng = np.random.default_rng(seed)
    channels, outputs = 3, 2
    codes = rng.integers(-127, 128, (outputs, channels, *shape.kernel)).astype(np.int8)
    weight_scale = (2.0 ** rng.integers(-9, -3, outputs)).astype(np.float32)
    s = 2.0 ** rng.integers(-6, 7, channels) if let != "none" else np.ones(channels)

    def off_midpoints(*size: int) -> F64:
        """x~ in the grid's range and up to a third of it outside."""
        third = (params.qmax + 1) // 3 + 1
        steps = rng.integers(-third, params.qmax + third, size) - params.zero_point
        return (steps + rng.uniform(-0.49, 0.49, size)) * params.scale

    # A padded 0 becomes -d / s.
    d = (-off_midpoints(channels) * s).astype(np.float32) if let == "shift" else np.zeros(channels, np.float32)
    x = off_midpoints(channels, *SIDE) * s[:, None, None] + d.astype(np.float64)[:, None, None]
    layer = FoldedLayer(
        "site",
        codes[:, :, 0, 0] if shape.linear else codes,
        weight_scale,
        params,
        None if let == "none" else s.astype(np.float32),
        d if let == "shift" else None,
    )
    bias = (rng.integers(-4000, 4000, outputs) * weight_scale * params.scale).astype(np.float32)
    return Case(layer, bias, x)


def asymmetric_reference(case: Case, shape: Convolution) -> F64:
    """W^ x^ + bias with x~ = (x - d) / s; zeros are padded to x where d shifts it, else to x^."""
    layer, params = case.layer, case.layer.activation
    x = case.x
    if layer.let_shift is not None:
        x = padded(x, shape.padding) - layer.let_shift.astype(np.float64)[:, None, None]
    if layer.let_scale is not None:
        x = x / layer.let_scale.astype(np.float64)[:, None, None]
    q = np.clip(np.rint(x / params.scale) + params.zero_point, 0, params.qmax)
    values = (q - params.zero_point) * params.scale
    if layer.let_shift is None:
        values = padded(values, shape.padding)
    weight = layer.weight_codes.reshape(*layer.weight_codes.shape[:2], *shape.kernel)
    weight = weight * layer.weight_scale.astype(np.float64)[:, None, None, None]
    tensors = [torch.from_numpy(a) for a in (values, weight, case.bias.astype(np.float64))]
    return functional.conv2d(*tensors, stride=shape.stride, dilation=shape.dilation).numpy()


def lowered(case: Case, shape: Convolution, lowering: str) -> tuple[F64, float]:
    """What the graph computes, and the largest of its biases."""
    builder = GraphBuilder(LOWERINGS[lowering])
    net: Any = SimpleNamespace(builder=builder, activations=ActivationWriter(builder))
    if shape.linear:
        tokens = case.x.reshape(len(case.x), -1).T[None]
        y, largest = run_graph(builder, write_linear(net, "x", case.layer, case.bias), tokens)
        return y[0].T.reshape(-1, *SIDE), largest
    window = Window(shape.kernel, SIDE, shape.stride, shape.dilation, (*shape.padding, *shape.padding))
    y, largest = run_graph(builder, write_convolution(net, "x", case.layer, window, case.bias), case.x[None])
    return y[0], largest


def check(params: QuantParams, shape: Convolution, let: str, seed: int, bias_error: float) -> None:
    """bias_error: of float32, relative to the largest bias."""
    case = make_case(params, shape, let, seed)
    expected = asymmetric_reference(case, shape)
    for lowering in ("symmetric-f32", "symmetric-rtx-f32", "asymmetric"):
        if any(shape.padding) and let != "shift" and not 0 <= params.zero_point <= params.qmax:
            with pytest.raises(ExportError, match="without 0 on a padded input"):
                lowered(case, shape, lowering)
            continue
        y, largest = lowered(case, shape, lowering)
        assert np.abs(y - expected).max() <= 1e-10 + bias_error * largest, lowering


DYADIC = [2.0**-9, 2.0**-6, 0.25, 1.0]
bits = st.integers(2, 8)
zero_points = st.one_of(st.sampled_from(["first", "last", "middle"]), st.integers(-300, 600))
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
convolutions = st.one_of(
    st.just(Convolution(linear=True)),
    st.builds(
        Convolution,
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=pairs,
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        dilation=pairs,
    ),
)
lets = st.sampled_from(["none", "scale", "shift"])
AROUND = Convolution((3, 3), padding=(1, 1))


@given(bits, zero_points, st.sampled_from(DYADIC), convolutions, lets, st.integers(0, 2**20))
@example(8, "first", 0.25, AROUND, "none", 0)
@example(8, "last", 0.25, AROUND, "none", 0)
@example(8, "middle", 0.25, AROUND, "shift", 0)
@example(8, 20, 0.25, AROUND, "none", 0)
@example(8, 20, 0.25, AROUND, "shift", 0)
@example(6, 20, 0.25, AROUND, "none", 0)
@example(2, "last", 0.25, AROUND, "scale", 0)
@example(8, -200, 0.25, AROUND, "shift", 0)
@example(7, 500, 0.25, AROUND, "shift", 0)
@settings(max_examples=150, deadline=None)
def test_integers_equal_the_asymmetric_reference(
    bits: int, zero_point: str | int, scale: float, shape: Convolution, let: str, seed: int
) -> None:
    """Scales that are powers of 2: every constant is exact, and so is the result."""
    if isinstance(zero_point, str):
        zero_point = {"first": 0, "last": 2**bits - 1, "middle": 2 ** (bits - 1)}[zero_point]
    params = QuantParams(scale, zero_point, bits)
    check(params, shape, let, seed, 0)


# Above 0, below 0, touching it, of no width at 0 and elsewhere.
ENDS = [(0.5, 3.0), (-3.0, -0.5), (0.0, 7.3), (-7.3, 0.0), (-0.17, 6.9), (0.0, 0.0), (3.0, 3.0), (-2.5, -2.5)]


@pytest.mark.parametrize("ends", ENDS)
@given(bits, convolutions, lets, st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_ranges_of_one_side_or_no_width(
    ends: tuple[float, float], bits: int, shape: Convolution, let: str, seed: int
) -> None:
    """Any scale: equal up to how float32 holds the bias."""
    params = QuantParams.from_range(*ends, bits)
    assert ends[0] != ends[1] or params.scale == MIN_SCALE
    check(params, shape, let, seed, 2.0**-24)


def test_few_bits_need_no_shift_and_eight_do() -> None:
    assert plan_grid(QuantParams(0.1, 20, 6), "int8").shift == 0
    assert plan_grid(QuantParams(0.1, 20, 6), "int8").clip is not None
    assert plan_grid(QuantParams(0.1, 20, 8), "int8").shift == pytest.approx((128 - 20) * 0.1)
    assert plan_grid(QuantParams(0.1, 20, 8), "int8").clip is None
    assert plan_grid(QuantParams(0.1, 128, 8), "int8").shift == 0
    assert plan_grid(QuantParams(0.1, 20, 8), "uint8").shift == 0


def test_one_pair_serves_all_consumers_of_one_value() -> None:
    writer, params = ActivationWriter(GraphBuilder(LOWERINGS["symmetric"])), QuantParams(0.1, 20, 8)
    layer = FoldedLayer("to_q", np.ones((16, 16), np.int8), np.ones(16, np.float32), params)
    nowhere, around = (0, 0, 0, 0), (1, 1, 1, 1)
    to_q = writer.write("x", layer, nowhere)[0]
    assert to_q == writer.write("x", replace(layer, site="to_k"), nowhere)[0]
    assert to_q != writer.write("y", layer, nowhere)[0]
    # A shifted, padded pair is another tensor than the unpadded one, and so is one behind a LET.
    assert to_q != writer.write("x", layer, around)[0]
    assert to_q != writer.write("x", replace(layer, let_scale=np.full(16, 2, np.float32)), nowhere)[0]
