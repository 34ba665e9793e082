"""Lower one folded network: trace it, then walk the trace node by node."""

from __future__ import annotations

import onnx
import torch

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.lower.aten import arithmetic, layers, shape, split  # noqa: F401  they register their handlers
from intsr.export.lower.context import HANDLERS, LoweringContext
from intsr.export.onnx.builder import ExternalData
from intsr.targets.lowering import Lowering
from intsr.types import TensorInfo

IGNORED = (torch.ops.aten._assert_tensor_metadata.default,)
TENSOR_NAMES = {"encoder": ("x", "latent"), "unet": ("latent", "denoised"), "decoder": ("denoised", "image")}


def lower_network(
    network: FoldedNetwork, lowering: Lowering, input_shape: tuple[int, ...], data: ExternalData | None = None
) -> tuple[onnx.ModelProto, TensorInfo, TensorInfo]:
    """Return the ONNX model, its input and its output.

    data: where large constants go, so that none is held; None for all in the model. Raises ExportError for an
    operation without a handler.
    """
    # Meta tensors would do for shapes, but parameters on the CPU let the trace share them without a copy.
    with torch.no_grad():
        program = torch.export.export(network.module, (torch.zeros(input_shape),), strict=False)
    net = LoweringContext(network, program, lowering, data)
    name_in, name_out = TENSOR_NAMES[network.name]
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in program.graph_signature.user_inputs:
                net.known[node] = name_in
        elif node in net.patterns.covered:
            continue
        elif node.op == "call_function" and node.target not in IGNORED:
            handler = HANDLERS.get(node.target)
            if handler is None:
                where, got = f"{network.name}: {node.name}", f"no lowering for {node.target}"
                raise ExportError(where, got, "SD 2.1's operations")
            net.known[node] = handler(net, node)
        elif node.op == "output":
            (result,) = node.args[0]
    shape_out = tuple(int(side) for side in result.meta["val"].shape)
    info_in = TensorInfo(name_in, input_shape, lowering.float_dtype)
    info_out = TensorInfo(name_out, shape_out, lowering.float_dtype)
    return net.builder.model(network.name, info_in, net.value(result), info_out), info_in, info_out
