"""Lower one folded network: trace it, then walk the trace node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork
from intsr.export.lower.aten import HANDLERS, Value
from intsr.export.lower.aten.split import SPLIT_HANDLERS
from intsr.export.lower.patterns import find_patterns
from intsr.export.lower.write.activations import ActivationWriter
from intsr.export.onnx.builder import ExternalData, GraphBuilder
from intsr.targets.lowering import Lowering
from intsr.types import TensorInfo

IGNORED = ("aten._assert_tensor_metadata.default",)
TENSOR_NAMES = {"encoder": ("x", "latent"), "unet": ("latent", "denoised"), "decoder": ("denoised", "image")}


class NetworkLowering:
    """The state of one walk: which ONNX value stands for which traced node."""

    def __init__(
        self,
        network: FoldedNetwork,
        lowering: Lowering,
        input_shape: tuple[int, ...],
        data: ExternalData | None = None,
    ) -> None:
        """data: where large constants go, so that none is held; None for all in the model."""
        self.builder = GraphBuilder(lowering, data)
        self.activations = ActivationWriter(self.builder)
        self.layers = network.layers
        self._name, self._input_shape = network.name, input_shape
        self._tensors = dict(network.module.state_dict())
        self._program = _trace(network.module, input_shape)
        signature = self._program.graph_signature
        self._attributes = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._values: dict[fx.Node, Value] = {}
        self.patterns = find_patterns(list(self._program.graph.nodes), self._integer_layers(), lowering)

    def _integer_layers(self) -> dict[fx.Node, FoldedLayer]:
        nodes = [n for n in self._program.graph.nodes if n.op == "call_function" and len(n.args) > 1]
        sites = {node: self.site_of(node.args[1]) for node in nodes if self.is_constant(node.args[1])}
        return {node: self.layers[site] for node, site in sites.items() if site in self.layers}

    def values(self, node: Any) -> tuple[str, ...]:
        value = self._values[node]
        return value if isinstance(value, tuple) else (value,)

    def value(self, node: Any) -> str:
        """The ONNX name of a traced value; parameters used directly become initializers."""
        if self.is_constant(node) and node not in self._values:
            self._values[node] = self.builder.constant(self._attributes[node.name], self.parameter(node))
        (value,) = self.values(node)
        return value

    def is_constant(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.name in self._attributes

    def parameter(self, node: Any) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._tensors[self._attributes[node.name]].numpy()
        return array

    def site_of(self, weight: Any) -> str:
        """The module that owns `weight`, by its dotted name: the site of a calibration."""
        return str(self._attributes[weight.name]).removesuffix(".weight")

    def bias_of(self, site: str) -> NDArray[np.float32] | None:
        bias = self._tensors.get(f"{site}.bias")
        return None if bias is None else bias.numpy()

    def run(self) -> tuple[onnx.ModelProto, TensorInfo, TensorInfo]:
        """The ONNX model, its input and its output. Raises ExportError for an operation without a handler."""
        name_in, name_out = TENSOR_NAMES[self._name]
        user_inputs = self._program.graph_signature.user_inputs
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                if node.name in user_inputs:
                    self._values[node] = name_in
            elif node in self.patterns.covered:
                continue
            elif node.op == "call_function" and str(node.target) not in IGNORED:
                handler = HANDLERS.get(str(node.target)) or SPLIT_HANDLERS.get(str(node.target))
                if handler is None:
                    raise ExportError(
                        f"{self._name}: {node.name}", f"no lowering for {node.target}", "SD 2.1's operations"
                    )
                self._values[node] = handler(self, node)
            elif node.op == "output":
                (result,) = node.args[0]
        shape = tuple(int(side) for side in result.meta["val"].shape)
        dtype = self.builder.lowering.float_dtype
        info_in, info_out = TensorInfo(name_in, self._input_shape, dtype), TensorInfo(name_out, shape, dtype)
        return self.builder.model(self._name, info_in, self.value(result), info_out), info_in, info_out


def _trace(module: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    # Meta tensors would do for shapes, but parameters on the CPU let the trace share them without a copy.
    with torch.no_grad():
        return torch.export.export(module, (torch.zeros(input_shape),), strict=False)
