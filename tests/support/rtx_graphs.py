"""Small ONNX graphs of the kind that the exporter writes for TensorRT, and some that must not build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Appends nodes of fp16 in opset 20; every one is called after its operator and a number."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))
        return name

    def output(self, value: str, name: str, shape: tuple[int, ...] | None) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"identity_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))

    def constant(self, value: Any, dtype: str = "float16") -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def fake_quantize(self, value: str, scale: Any = 0.05) -> str:
        grid = (self.constant(scale), self.constant(np.zeros_like(scale), "int8"))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", value, *grid), *grid)

    def int8_weight(self, shape: tuple[int, ...], axis: int) -> str:
        values = self.random.integers(-127, 128, shape)
        scales = self.constant(self.random.uniform(0.001, 0.01, shape[axis]))
        zeros = self.constant(np.zeros(shape[axis]), "int8")
        return self.op("DequantizeLinear", self.constant(values, "int8"), scales, zeros, axis=axis)

    def float_weight(self, shape: tuple[int, ...]) -> str:
        return self.constant(self.random.standard_normal(shape) * 0.05)

    def conv(self, value: str, channels_in: int, channels_out: int, quantized: bool = True, scale: Any = 0.05) -> str:
        """3x3, same size; quantized with an exact shift: pad, subtract, quantize, convolve VALID."""
        shape = (channels_out, channels_in, 3, 3)
        bias = self.constant(self.random.standard_normal(channels_out))
        if not quantized:
            return self.op("Conv", value, self.float_weight(shape), bias, pads=[1] * 4)
        pads = self.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64")
        shifted = self.op("Sub", self.op("Pad", value, pads, self.constant(0)), self.constant(0.1))
        return self.op("Conv", self.fake_quantize(shifted, scale), self.int8_weight(shape, 0), bias, pads=[0] * 4)

    def linear(self, value: str, width_in: int, width_out: int, quantized: bool = True) -> str:
        shape = (width_in, width_out)
        weight = self.int8_weight(shape, 1) if quantized else self.float_weight(shape)
        return self.op("Add", self.op("MatMul", value, weight), self.constant(self.random.standard_normal(width_out)))

    def group_norm(self, value: str, shape: tuple[int, ...], groups: int) -> str:
        """InstanceNormalization over (1, groups, rest), then the channels' own scale and bias."""
        flat = self.op("Reshape", value, self.constant([0, groups, -1], "int64"))
        ones, zeros = self.constant(np.ones(groups)), self.constant(np.zeros(groups))
        flat = self.op("InstanceNormalization", flat, ones, zeros, epsilon=1e-5)
        normed = self.op("Reshape", flat, self.constant(list(shape), "int64"))
        scale, bias = (self.constant(self.random.standard_normal((shape[1], 1, 1))) for _ in range(2))
        return self.op("Add", self.op("Mul", normed, scale), bias)

    def silu(self, value: str) -> str:
        return self.op("Mul", value, self.op("Sigmoid", value))

    def heads(self, value: str, tokens: int, heads: int, width: int) -> str:
        split = self.op("Reshape", value, self.constant([1, tokens, heads, width // heads], "int64"))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, q: str, k: str, v: str, head_width: int) -> str:
        """q, k, v (1, heads, tokens, head_width) -> the same shape as q."""
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scaled = self.op("Mul", scores, self.constant(head_width**-0.5))
        return self.op("MatMul", self.op("Softmax", scaled, axis=-1), v)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def save(self, path: Path) -> Path:
        onnx.save(self.model(), str(path))
        return path


def add_resblock(graph: Graph, x: str, shape: tuple[int, ...], quantized: bool = True, scale: Any = 0.05) -> str:
    """GroupNorm, SiLU, conv, twice, and the residual."""
    y, channels = x, shape[1]
    for _ in range(2):
        y = graph.silu(graph.group_norm(y, shape, channels // 2))
        y = graph.conv(y, channels, channels, quantized, scale)
    return graph.op("Add", x, y)


def resblock(channels: int = 32, side: int = 16, quantized: bool = True, scale: Any = 0.05) -> Graph:
    """MACs: 2 convs * channels^2 * 9 * side^2."""
    graph, shape = Graph(), (1, channels, side, side)
    graph.output(add_resblock(graph, graph.input("x", shape), shape, quantized, scale), "y", shape)
    return graph


def attention_block(tokens: int = 64, width: int = 64, heads: int = 2, context_tokens: int = 7) -> Graph:
    """Self-attention, then cross-attention to a constant context; all six linears are int8."""
    graph = Graph()
    x = graph.input("x", (1, tokens, width))

    def merge(value: str) -> str:
        back = graph.op("Transpose", value, perm=[0, 2, 1, 3])
        return graph.op("Reshape", back, graph.constant([1, tokens, width], "int64"))

    norm = [graph.constant(np.ones(width)), graph.constant(np.zeros(width))]
    normed = graph.fake_quantize(graph.op("LayerNormalization", x, *norm, epsilon=1e-5))
    q, k, v = (graph.heads(graph.linear(normed, width, width), tokens, heads, width) for _ in range(3))
    merged = graph.fake_quantize(merge(graph.attention(q, k, v, width // heads)))
    x = graph.op("Add", x, graph.linear(merged, width, width))
    normed = graph.fake_quantize(graph.op("LayerNormalization", x, *norm, epsilon=1e-5))
    q = graph.heads(graph.linear(normed, width, width), tokens, heads, width)
    context = (1, heads, context_tokens, width // heads)
    k, v = graph.float_weight(context), graph.float_weight(context)
    merged = graph.fake_quantize(merge(graph.attention(q, k, v, width // heads)))
    graph.output(graph.op("Add", x, graph.linear(merged, width, width)), "y", (1, tokens, width))
    return graph


def unsupported() -> Graph:
    """Det is an ONNX operator that TensorRT does not have."""
    graph = Graph()
    y = graph.op("Det", graph.silu(graph.input("x", (1, 4, 4))))
    graph.output(y, "y", (1,))
    return graph
