"""ONNX graphs of folded video networks against their torch reference, quantizer by quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.observe.fake_quant import FakeQuantLayer
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.lower.network import lower_chunk
from intsr.kernels.quantizer import quantize
from intsr.targets.lowering import LOWERINGS


def first_output(module: nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: Any = module(*inputs)
    return result if isinstance(result, torch.Tensor) else result[0]


def teacher_forced(network: FoldedNetwork, inputs: list[torch.Tensor]) -> tuple[dict[str, int], float]:
    """How many codes differ at each quantizer beyond what rounding explains, and the first output's PSNR, given the
    reference's codes upstream.
    """
    reference, expected = fake_quantized(network), dict[str, NDArray[np.uint8]]()
    for site, layer in reference.named_modules():
        if isinstance(layer, FakeQuantLayer):
            layer.register_forward_pre_hook(
                lambda module, given, site=site: expected.__setitem__(
                    site, quantize(module.transformed(given[0]).numpy(), module.activation)
                )
            )
    output = first_output(reference, inputs).numpy()
    graph, infos_in, _ = lower_chunk(network, LOWERINGS["asymmetric-cpu"], [tuple(t.shape) for t in inputs])
    feeds = {info.name: tensor.numpy() for info, tensor in zip(infos_in, inputs, strict=True)}
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    quantized = {node.output[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    sites = []
    for node in graph.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in quantized:
            continue
        site, source = node.name.removesuffix(".dequantize"), node.input[0]
        taps, whole = weights[f"{site}.weight"].dims, network.layers[site].weight_codes.shape
        if len(whole) == 5 and taps[2] < whole[2]:
            # The graph of a first frame has no zeros in front.
            expected[site] = expected[site][:, :, -1:]
        node.input[0] = f"{site}.forced"
        kind = onnx.TensorProto.UINT8
        graph.graph.input.append(onnx.helper.make_tensor_value_info(node.input[0], kind, expected[site].shape))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(source, kind, expected[site].shape))
        feeds[node.input[0]] = expected[site]
        sites.append((site, source))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got, *codes = session.run([graph.graph.output[0].name, *(source for _, source in sites)], feeds)
    differing = {}
    for (site, _), own in zip(sites, codes, strict=True):
        # Tensors are small: one rounding that falls the other way may be more than a thousandth.
        allowed = max(2, own.size // 1000)
        differing[site] = max(int(np.sum(own != expected[site])) - allowed, 0)
    psnr_db = 20 * np.log10(np.ptp(output)) - 10 * np.log10(np.mean((got - output) ** 2) + 1e-30)
    return differing, float(psnr_db)
