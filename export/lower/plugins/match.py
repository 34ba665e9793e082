"""Finds a GroupNorm and as much of what follows it as one node can stand for: see `plugins.group_norm`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from intsr.kernels.launches.group_norm_plugin import takes_shape

F64 = NDArray[np.float64]
INT8_ENDS = (-128, 127)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
# Shapes that Reshape reads are a few numbers; anything larger is a weight, which no shape depends on.
_SHAPE_BYTES = 1024


class Graph:
    """Who makes and who reads each value, the constants' numbers, and every value's type and shape."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        self._folder = str(folder)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {info.name for info in graph.output}
        self.producer = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.infos = {info.name: info.type.tensor_type for info in _inferred(model)}

    def constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor, self._folder)

    def reader(self, value: str, *op_types: str) -> onnx.NodeProto | None:
        """The one node that reads the value, where it is one of those."""
        readers = self._readers.get(value, [])
        if len(readers) != 1 or value in self._outputs or readers[0].op_type not in op_types:
            return None
        return readers[0]

    def readers(self, value: str) -> list[onnx.NodeProto]:
        return [] if value in self._outputs else self._readers.get(value, [])

    def shape(self, value: str) -> tuple[int, ...]:
        info = self.infos.get(value)
        return () if info is None else tuple(dim.dim_value for dim in info.shape.dim)


@dataclass(slots=True)
class Match:
    """The nodes that one node will stand for. value: its output's name so far. nodes: what goes."""

    norm: onnx.NodeProto
    x: str
    shape: tuple[int, ...]
    groups: int
    gamma: F64
    beta: F64
    value: str
    nodes: list[onnx.NodeProto]
    activation: bool = False
    factor: F64 | float = 1.0
    offset: F64 | float = 0.0
    scale: float = 1.0
    ends: tuple[int, int] | None = None


def _inferred(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Types and shapes of all values but constants; weights are left out of the copy that is looked at."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*graph.input, *graph.value_info, *graph.output]


def match_group_norm(graph: Graph, norm: onnx.NodeProto) -> Match | None:
    before, after = graph.producer.get(norm.input[0]), graph.reader(norm.output[0], "Reshape")
    ones, zeros = graph.constant(norm.input[1]), graph.constant(norm.input[2])
    if before is None or before.op_type != "Reshape" or graph.readers(before.output[0]) != [norm] or after is None:
        return None
    x, grouping = before.input[0], graph.constant(before.input[1])
    shape, plain = graph.shape(x), ones is not None and zeros is not None and (ones == 1).all() and not zeros.any()
    if not plain or grouping is None or len(grouping) != 3 or graph.shape(after.output[0]) != shape:
        return None
    groups = int(grouping[1])
    if not takes_shape(shape, groups) or int(grouping[0]) != shape[0] or graph.infos[x].elem_type not in _FLOATS:
        return None
    mul = graph.reader(after.output[0], "Mul")
    add = None if mul is None else graph.reader(mul.output[0], "Add")
    if mul is None or add is None:
        return None
    gamma, beta = _vector(graph, mul, shape[1]), _vector(graph, add, shape[1])
    if gamma is None or beta is None:
        return None
    match = Match(norm, x, shape, groups, gamma, beta, add.output[0], [before, norm, after, mul, add])
    _extend(graph, match)
    return match


def _vector(graph: Graph, node: onnx.NodeProto, channels: int) -> F64 | None:
    """The constant operand of an elementwise node on (N, C, H, W), where it is one number or one a channel."""
    for name in node.input:
        array = graph.constant(name)
        if array is not None and array.shape in ((), (1,), (1, channels, 1, 1), (channels, 1, 1)):
            return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))
    return None


def _extend(graph: Graph, match: Match) -> None:
    """Take in what follows, as far as nobody else reads what lies between."""
    readers = graph.readers(match.value)
    sigmoid = next((node for node in readers if node.op_type == "Sigmoid"), None)
    if sigmoid is not None:
        mul = graph.reader(sigmoid.output[0], "Mul")
        if mul is None or len(readers) != 2 or not any(mul is node for node in readers):
            return
        match.activation, match.value = True, mul.output[0]
        match.nodes += [sigmoid, mul]
    _take_affine(graph, match)
    _take_quantizer(graph, match)


def _take_affine(graph: Graph, match: Match) -> None:
    mul = graph.reader(match.value, "Mul")
    factor = None if mul is None else _vector(graph, mul, match.shape[1])
    if mul is not None and factor is not None and factor.all():
        match.factor, match.value = factor, mul.output[0]
        match.nodes.append(mul)
    sub = graph.reader(match.value, "Sub")
    offset = None if sub is None or sub.input[0] != match.value else _vector(graph, sub, match.shape[1])
    if sub is not None and offset is not None:
        match.offset, match.value = offset, sub.output[0]
        match.nodes.append(sub)


def _take_quantizer(graph: Graph, match: Match) -> None:
    clip = graph.reader(match.value, "Clip")
    quantize = graph.reader(clip.output[0] if clip else match.value, "QuantizeLinear")
    if quantize is None or len(quantize.input) != 3:
        return
    scale, zero_point = graph.constant(quantize.input[1]), graph.constant(quantize.input[2])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype != np.int8 or zero_point.any():
        return
    step, lowest, highest = float(scale.reshape(())), *INT8_ENDS
    if clip is not None:
        ends = [graph.constant(name) for name in clip.input[1:]]
        if len(ends) != 2 or any(end is None or end.size != 1 for end in ends):
            return
        low, high = (float(np.rint(np.float64(end.reshape(())) / step)) for end in ends if end is not None)
        lowest, highest = max(lowest, int(low)), min(highest, int(high))
        if lowest >= highest:
            return
    match.scale, match.ends, match.value = step, (lowest, highest), quantize.output[0]
    match.nodes += [node for node in (clip, quantize) if node is not None]
