"""The layers of an ONNX graph and their multiply-accumulates: what a finished plan is measured against.

Only layers with weights count: Conv, and MatMul or Gemm with a constant operand. Attention's own two MatMuls have no
weights (even where cross-attention's K and V are constants) and are marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx

from intsr.errors import BuildError
from intsr.kernels.launches.group_norm_plugin import NAMESPACE

# Between attention's MatMuls and its Softmax.
_BESIDE_SOFTMAX = {"Mul", "Div", "Add", "Sub", "Cast", "Reshape", "Transpose", "Identity", "Where", "Unsqueeze"}
# Shapes that Reshape, Pad or Resize read are a few numbers; anything larger is a weight, which no shape depends on.
_LARGEST_SHAPE_ELEMENTS = 64

# Endings of a branch's two products, and of their weights, as export/lower/write/layers.py names them.
BRANCH_LAYERS, BRANCH_WEIGHTS = (".narrow", ".wide"), (".down", ".up")

Step = Callable[[onnx.NodeProto], Iterable[onnx.NodeProto]]


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """One node of the graph."""

    name: str
    op_type: str
    # 0 for everything but Conv, ConvTranspose, Gemm and MatMul.
    macs: int = 0
    # A MatMul beside a Softmax, not a linear layer.
    attention: bool = False
    # Its weights are stored as integers.
    integer_weight: bool = False


def layers_from_onnx(model: onnx.ModelProto) -> tuple[OnnxLayer, ...]:
    """Every node with its multiply-accumulates. Static shapes only.

    A node without a name is called as TensorRT's parser calls it. Raises BuildError where a shape is not known:
    a layer that cannot be counted must not drop out of the count.
    """
    shapes = _shapes(model)
    constants = _constants(model.graph)
    attention = _attention_matmuls(model.graph)
    integer = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    layers = []
    for node in model.graph.node:
        name = node.name or f"node_of_{node.output[0]}"
        is_attention = node.output[0] in attention
        is_linear = node.op_type in ("MatMul", "Gemm") and any(value in constants for value in node.input[:2])
        counted = is_attention or is_linear or node.op_type in ("Conv", "ConvTranspose")
        macs = _macs(node, name, shapes) if counted else 0
        has_integers = counted and any(value in integer for value in node.input)
        layers.append(OnnxLayer(name, node.op_type, macs, is_attention, has_integers))
    return tuple(layers)


def branch_shares(models: Sequence[onnx.ModelProto]) -> dict[str, float]:
    """What the float branches beside integer layers are of all layers with weights: `mac_share`, `parameter_share`.

    By the names that lowering gives; nothing where no graph has a branch.
    """
    initializers = [tensor for model in models for tensor in model.graph.initializer if len(tensor.dims) > 1]
    own = sum(math.prod(tensor.dims) for tensor in initializers if tensor.name.endswith(BRANCH_WEIGHTS))
    if not own:
        return {}
    layers = [layer for model in models for layer in layers_from_onnx(model) if layer.macs and not layer.attention]
    macs = sum(layer.macs for layer in layers if layer.name.endswith(BRANCH_LAYERS))
    parameters = sum(math.prod(tensor.dims) for tensor in initializers)
    shares = {"mac_share": macs / sum(layer.macs for layer in layers), "parameter_share": own / parameters}
    return {name: round(share, 5) for name, share in shares.items()}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes of all values; what is dynamic or unknown is left out."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        # Inference reads only dims of weights, and copies the model, which protobuf limits to 2 GiB.
        if math.prod(tensor.dims) > _LARGEST_SHAPE_ELEMENTS:
            tensor.ClearField("raw_data")
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BuildError("ONNX graph", f"its shapes do not fit ({error})", fix="export the model again") from error
    shapes = {tensor.name: tuple(tensor.dims) for tensor in light.graph.initializer}
    for info in (*light.graph.input, *light.graph.value_info, *light.graph.output):
        tensor_type = info.type.tensor_type
        if tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor_type.shape.dim):
            shapes[info.name] = tuple(dim.dim_value for dim in tensor_type.shape.dim)
    return shapes


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of values that no input of the graph reaches."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
    return constants


def _attention_matmuls(graph: onnx.GraphProto) -> set[str]:
    """Outputs of the MatMuls in front of and behind every Softmax."""
    producer = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def before(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [producer[name] for name in node.input if name in producer]

    def after(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [consumer for name in node.output for consumer in consumers.get(name, [])]

    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    return {name for softmax in softmaxes for step in (before, after) for name in _nearest_matmuls(softmax, step)}


def _nearest_matmuls(start: onnx.NodeProto, step: Step) -> set[str]:
    """Outputs of the MatMuls that `step` reaches from `start` through nothing but attention's elementwise nodes."""
    pending, seen, found = list(step(start)), set(), set()
    while pending:
        node = pending.pop()
        if node.op_type == "MatMul":
            found.add(node.output[0])
        elif node.op_type in _BESIDE_SOFTMAX and node.output[0] not in seen:
            seen.add(node.output[0])
            pending.extend(step(node))
    return found


def _macs(node: onnx.NodeProto, name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    needed = [*node.input[:2], node.output[0]]
    missing = [value for value in needed if value not in shapes]
    if missing:
        raise BuildError(name, f"the shape of {', '.join(missing)} is not known", "static shapes throughout")
    left, right, out = (shapes[value] for value in needed)
    if node.op_type == "Conv":
        # weights (Cout, Cin/groups, *kernel): every output element takes Cin/groups * kernel products
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        # weights (Cin, Cout/groups, *kernel): every input element gives Cout/groups * kernel products
        return math.prod(left) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * (left[0] if transposed else left[-1])


def plugin_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of nodes of each operator that needs a plugin."""
    names = [node.op_type for node in model.graph.node if node.domain == NAMESPACE]
    return {name: names.count(name) for name in dict.fromkeys(names)}
