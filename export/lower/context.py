"""The state that handlers of traced operations read and write.

`HANDLERS` is the whole vocabulary; any other operation is an ExportError, never skipped. The modules of `lower.aten`
fill it as they are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from intsr.export.fold.fold import FoldedLayer, FoldedNetwork
from intsr.export.lower.patterns import find_patterns
from intsr.export.lower.write.activations import ActivationWriter
from intsr.export.onnx.builder import ExternalData, GraphBuilder
from intsr.targets.lowering import Lowering

# The ONNX name, or names, of what a traced node computes.
Value: TypeAlias = str | tuple[str, ...]
Handler: TypeAlias = Callable[["LoweringContext", fx.Node], Value]
H = TypeVar("H", bound=Handler)
HANDLERS: dict[Any, Handler] = {}


def lowers(*operations: Any) -> Callable[[H], H]:
    """Register a handler for these targets of traced nodes."""

    def register(handler: H) -> H:
        HANDLERS.update(dict.fromkeys(operations, handler))
        return handler

    return register


def shape_of(node: Any) -> list[int]:
    """Return the static shape of a traced value."""
    return [int(side) for side in node.meta["val"].shape]


def argument(node: fx.Node, index: int, keyword: str, default: Any) -> Any:
    """Return an argument that may be given by place or by keyword, or not at all."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(keyword, default)


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) of a setting that may be one number for both."""
    height, width = (value, value) if isinstance(value, int) else (list(value) * 2)[:2]
    return int(height), int(width)


class LoweringContext:
    """One network on its way to ONNX: which ONNX value stands for which traced node."""

    def __init__(
        self,
        network: FoldedNetwork,
        program: torch.export.ExportedProgram,
        lowering: Lowering,
        data: ExternalData | None,
    ) -> None:
        """data: where large constants go, so that none is held; None for all in the model."""
        self.builder = GraphBuilder(lowering, data)
        self.activations = ActivationWriter(self.builder)
        self.layers = network.layers
        self._tensors = dict(network.module.state_dict())
        signature = program.graph_signature
        self._attributes = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        # What stands for the nodes that were met so far.
        self.known: dict[fx.Node, Value] = {}
        nodes = list(program.graph.nodes)
        self.patterns = find_patterns(nodes, self._integer_layers(nodes), lowering)

    def _integer_layers(self, nodes: list[fx.Node]) -> dict[fx.Node, FoldedLayer]:
        calls = [node for node in nodes if node.op == "call_function" and len(node.args) > 1]
        sites = {node: self.site_of(node.args[1]) for node in calls if self.is_constant(node.args[1])}
        return {node: self.layers[site] for node, site in sites.items() if site in self.layers}

    def value(self, node: Any) -> str:
        """Return the ONNX name of a traced value; parameters used directly become initializers."""
        if self.is_constant(node) and node not in self.known:
            self.known[node] = self.builder.constant(self._attributes[node.name], self.parameter(node))
        value = self.known[node]
        assert isinstance(value, str)
        return value

    def is_constant(self, node: Any) -> bool:
        """Tell whether an argument is a parameter or a buffer of the module."""
        return isinstance(node, fx.Node) and node.name in self._attributes

    def parameter(self, node: Any) -> NDArray[np.float32]:
        """Return the numbers of a parameter or buffer."""
        array: NDArray[np.float32] = self._tensors[self._attributes[node.name]].numpy()
        return array

    def site_of(self, weight: Any) -> str:
        """Return the dotted name of the module that owns `weight`: the site of a calibration."""
        return str(self._attributes[weight.name]).removesuffix(".weight")

    def bias_of(self, site: str) -> NDArray[np.float32] | None:
        """Return the float bias of a layer, where it has one."""
        bias = self._tensors.get(f"{site}.bias")
        return None if bias is None else bias.numpy()
