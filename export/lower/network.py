"""Lower one folded network: trace it, then walk the trace node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.lower.aten import arithmetic, layers, shape, split, video  # noqa: F401  they register handlers
from intsr.export.lower.context import HANDLERS, LoweringContext, shape_of
from intsr.export.onnx.builder import ExternalData
from intsr.targets.lowering import Lowering
from intsr.types import TensorInfo

IGNORED = (torch.ops.aten._assert_tensor_metadata.default,)
TENSOR_NAMES = {
    "encoder": ("x", "latent"),
    "unet": ("latent", "denoised"),
    "transformer": ("latent", "denoised"),
    "decoder": ("denoised", "image"),
}
# What a network of chunks is given of the chunk before, and what it leaves to the next, each with its number.
BEFORE, AFTER = "before", "after"


def lower_network(
    network: FoldedNetwork, lowering: Lowering, input_shape: tuple[int, ...], data: ExternalData | None = None
) -> tuple[onnx.ModelProto, TensorInfo, TensorInfo]:
    """Return the ONNX model of a network of one tensor, its input and its output.

    data: where large constants go, so that none is held; None for all in the model. Raises ExportError for an
    operation without a handler.
    """
    model, (info_in,), (info_out,) = lower_chunk(network, lowering, [input_shape], data)
    return model, info_in, info_out


def lower_chunk(
    network: FoldedNetwork,
    lowering: Lowering,
    input_shapes: Sequence[tuple[int, ...]],
    data: ExternalData | None = None,
) -> tuple[onnx.ModelProto, tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Return the ONNX model of a network that also takes what the chunk before left, its inputs and its outputs.

    input_shapes: of the tensor itself, and of each of those, in their order. The rest as in `lower_network`.
    """
    # Meta tensors would do for shapes, but parameters on the CPU let the trace share them without a copy.
    with torch.no_grad():
        program = torch.export.export(network.module, tuple(map(torch.zeros, input_shapes)), strict=False)
    net = LoweringContext(network, program, lowering, data)
    name_in, name_out = TENSOR_NAMES[network.name]
    infos_in = _infos(name_in, BEFORE, input_shapes, lowering)
    names_in = dict(zip(program.graph_signature.user_inputs, (info.name for info in infos_in), strict=True))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in names_in:
                net.known[node] = names_in[node.name]
        elif node in net.patterns.covered:
            continue
        elif node.op == "call_function" and node.target not in IGNORED:
            handler = HANDLERS.get(node.target)
            if handler is None:
                where, got = f"{network.name}: {node.name}", f"no lowering for {node.target}"
                raise ExportError(where, got, "the operations of SD 2.1 and Wan 2.1")
            net.known[node] = handler(net, node)
        elif node.op == "output":
            results: Sequence[Any] = node.args[0]
    infos_out = _infos(name_out, AFTER, [tuple(shape_of(result)) for result in results], lowering)
    outputs = [(net.value(result), info) for result, info in zip(results, infos_out, strict=True)]
    return net.builder.model(network.name, infos_in, outputs), infos_in, infos_out


def _infos(first: str, others: str, shapes: Sequence[tuple[int, ...]], lowering: Lowering) -> tuple[TensorInfo, ...]:
    names = [first, *(f"{others}.{index}" for index in range(len(shapes) - 1))]
    return tuple(TensorInfo(name, sides, lowering.float_dtype) for name, sides in zip(names, shapes, strict=True))
