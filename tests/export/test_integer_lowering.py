"""The nodes that a quantized layer is written as, in integers, against the asymmetric quantizer's own definition.

The written Pad, Mul, Sub, Clip and QuantizeLinear are run in float64, the convolution in int64, and the bias is the
one that the graph holds. Inputs lie off the midpoints between codes, where a shift by an odd number of steps and half
to even may go either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer
from intsr.export.lower.write.activations import ActivationWriter, check_padding, shifted_bias, value_outside
from intsr.export.lower.write.borders import Window, border_bias
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import MIN_SCALE, QuantParams
from intsr.targets.lowering import LOWERINGS
from intsr.types import TensorInfo

CONTAINERS = {"symmetric-f32": (-128, 127), "symmetric-rtx-f32": (-128, 127), "asymmetric": (0, 255)}
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


def convolve(x: NDArray[np.int64], weight: NDArray[np.int64], shape: Convolution) -> NDArray[np.int64]:
    """Exact, without padding. x: (Cin, H, W), weight: (Cout, Cin, kh, kw)."""
    (dy, dx), (sy, sx) = shape.dilation, shape.stride
    height, width = (n - (k - 1) * d for n, k, d in zip(x.shape[1:], shape.kernel, shape.dilation, strict=True))
    y = np.zeros((len(weight), -(-height // sy), -(-width // sx)), np.int64)
    for i in range(shape.kernel[0]):
        for j in range(shape.kernel[1]):
            seen = x[:, i * dy : i * dy + height : sy, j * dx : j * dx + width : sx]
            y += np.tensordot(weight[:, :, i, j], seen, axes=1)
    return y


def padded(x: NDArray, padding: tuple[int, int]) -> NDArray:
    return np.pad(x, ((0, 0), (padding[0], padding[0]), (padding[1], padding[1])))


def run_written(builder: GraphBuilder, value: str, x: F64, container: tuple[int, int]) -> tuple[NDArray, float, bool]:
    """(codes minus zero-point, int64; scale; whether Pad was among the nodes) of the pair that ends in `value`."""
    info = TensorInfo("x", (1,), "float32")
    graph = builder.model("probe", info, value, TensorInfo("y", (1,), "float32")).graph
    values: dict[str, NDArray] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    values["x"] = x
    kinds = [node.op_type for node in graph.node]
    assert kinds[-3:] == ["QuantizeLinear", "DequantizeLinear", "Identity"]
    for node in graph.node[:-2]:
        first, *others = (values[name] for name in node.input)
        if node.op_type == "Pad":
            begin, end = others[0].reshape(2, -1)
            result: NDArray = np.pad(first, list(zip(begin, end, strict=True)))
        elif node.op_type == "QuantizeLinear":
            scale, zero_point = float(others[0]), int(others[1])
            result = np.clip(np.rint(first / scale) + zero_point, *container).astype(np.int64) - zero_point
        else:
            operation = {"Mul": np.multiply, "Sub": np.subtract, "Clip": np.clip}[node.op_type]
            result = operation(first, *(other.astype(np.float64) for other in others))
        values[node.output[0]] = result
    assert container == (0, 255) or zero_point == 0
    return result, scale, "Pad" in kinds


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


def lowered(case: Case, shape: Convolution, lowering: str) -> tuple[F64, F64]:
    """What the graph computes, and how far its float32 bias is from the exact one, (Cout,)."""
    builder, layer = GraphBuilder(LOWERINGS[lowering]), case.layer
    pads = (*shape.padding, *shape.padding)
    if LOWERINGS[lowering].borders == "bias":
        check_padding(layer, pads, LOWERINGS[lowering])
        pads = (0, 0, 0, 0)
    value, shift, pad_first = ActivationWriter(builder).write("x", layer, pads)
    x = case.x.reshape(len(case.x), -1).T[None] if shape.linear else case.x[None]
    codes, scale, has_pad = run_written(builder, value, x, CONTAINERS[lowering])
    assert has_pad == pad_first
    codes = codes[0].T.reshape(case.x.shape) if shape.linear else codes[0]
    if not pad_first:
        codes = padded(codes, shape.padding)
    weight = layer.weight_codes.astype(np.int64).reshape(*layer.weight_codes.shape[:2], *shape.kernel)
    sums = convolve(codes, weight, shape)
    assert sums.dtype == np.int64
    if LOWERINGS[lowering].borders == "bias" and (shift or layer.let_shift is not None) and any(shape.padding):
        return add_borders(case, shape, sums * (scale * layer.weight_scale.astype(np.float64))[:, None, None], shift)
    bias = shifted_bias(case.bias, layer.weight_codes, layer.weight_scale, shift)
    assert bias is not None and bias.dtype == np.float32
    weight_scale = layer.weight_scale.astype(np.float64)
    exact = case.bias + shift * weight.reshape(len(weight), -1).sum(1) * weight_scale
    bias_error = np.abs(bias - exact)
    assert (bias_error <= 2.0**-24 * np.abs(exact)).all()
    y = sums * (scale * weight_scale)[:, None, None] + bias.astype(np.float64)[:, None, None]
    return y, bias_error


def add_borders(case: Case, shape: Convolution, y: F64, shift: float) -> tuple[F64, F64]:
    """y and its column's bias; against that, the float64 convolution of c inside the picture and x0 around it."""
    layer, (top, left) = case.layer, shape.padding
    weight = layer.weight_codes * layer.weight_scale.astype(np.float64)[:, None, None, None]
    outside = value_outside(layer, LOWERINGS["symmetric-rtx-f32"])
    field = np.broadcast_to(outside[:, None, None], (weight.shape[1], SIDE[0] + 2 * top, SIDE[1] + 2 * left)).copy()
    field = field.astype(np.float64)
    field[:, top : top + SIDE[0], left : left + SIDE[1]] = shift
    tensors = [torch.from_numpy(a) for a in (field, weight, case.bias.astype(np.float64))]
    exact = functional.conv2d(*tensors, stride=shape.stride, dilation=shape.dilation).numpy()
    window = Window(shape.kernel, shape.stride, shape.dilation, (top, left, top, left))
    columns = border_bias(weight.astype(np.float32), case.bias, shift, outside, window, SIDE)
    assert np.sum([column.columns for column in columns], axis=0).tolist() == [1] * y.shape[2]
    for column in columns:
        assert column.bias.dtype == np.float32
        y = y + column.bias.astype(np.float64)[:, :, None] * column.columns
    written = sum(column.bias.astype(np.float64)[:, :, None] * column.columns for column in columns)
    error = np.abs(written - exact)
    assert (error <= 2.0**-24 * np.abs(exact) + 1e-12).all()
    return y, error.max(axis=(1, 2))


def without_zero(params: QuantParams) -> bool:
    return not 0 <= params.zero_point <= params.qmax


def check(params: QuantParams, shape: Convolution, let: str, seed: int) -> float:
    """Compare in both containers; returns the largest error of a bias."""
    largest = 0.0
    case = make_case(params, shape, let, seed)
    expected = asymmetric_reference(case, shape)
    for lowering in CONTAINERS:
        if any(shape.padding) and let != "shift" and without_zero(params):
            with pytest.raises(ExportError, match="without 0 on a padded input"):
                lowered(case, shape, lowering)
            continue
        y, bias_error = lowered(case, shape, lowering)
        assert (np.abs(y - expected) <= (1e-10 + bias_error)[:, None, None]).all()
        largest = max(largest, float(bias_error.max()))
    return largest


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
    assert check(params, shape, let, seed) == 0


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
    check(params, shape, let, seed)
