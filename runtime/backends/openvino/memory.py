"""What an inference of a compiled OpenVINO model takes beside its weights, told from its runtime graph.

A tensor lives from the operation that makes it to the last one that reads it, and what lives at one time lies in
memory at one time; OpenVINO packs its tensors so, and keeps the largest sum that it ever needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONSTANT = "Const"
# They give their first input another shape, and no memory of its own.
ALIASES = ("Reshape",)
# A blocked layout, `aBcd16b`: the axis of the capital letter is filled up to whole blocks.
_BLOCKS = re.compile(r"(\d+)([a-z])")
# Beside the tensors: scratch of kernels and gaps between tensors, measured as 0 to 0.12 of them (docs/models.md).
SCRATCH_SHARE = 0.2

Port = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a runtime graph. order: when it runs. inputs: outputs of others, by name and index.
    output_bytes: size of each output.
    """

    name: str
    kind: str
    order: int
    inputs: tuple[Port, ...]
    output_bytes: tuple[int, ...]


def largest_live_bytes(operations: Sequence[Operation]) -> int:
    """The largest sum of tensors that live at one time. Constants, and what only reshapes them, are weights."""
    running = sorted(operations, key=lambda operation: operation.order)
    # Output -> the output whose memory it is, None for weights.
    owners: dict[Port, Port | None] = {}
    size_bytes: dict[Port, int] = {}
    last: dict[Port, int] = {}
    for step, operation in enumerate(running):
        owned = [owners.get(port) for port in operation.inputs]
        for index, output_bytes in enumerate(operation.output_bytes):
            port = (operation.name, index)
            if operation.kind == CONSTANT:
                owners[port] = None
            elif operation.kind in ALIASES and owned:
                owners[port] = owned[0]
            else:
                owners[port], size_bytes[port], last[port] = port, output_bytes, step
        last.update({owner: step for owner in owned if owner is not None})
    changes = [0] * (len(running) + 1)
    steps = {operation.name: step for step, operation in enumerate(running)}
    for port, output_bytes in size_bytes.items():
        changes[steps[port[0]]] += output_bytes
        changes[last[port] + 1] -= output_bytes
    live = largest = 0
    for change in changes:
        live += change
        largest = max(largest, live)
    return largest


def stored_elements(shape: Sequence[int], layout: str) -> int:
    """(1, 60, 8, 8) in `aBcd16b` -> 4096: 60 channels take four blocks of 16. Layouts without blocks add nothing."""
    sides = list(shape)
    for block, letter in _BLOCKS.findall(layout):
        axis = ord(letter) - ord("a")
        if axis < len(sides):
            sides[axis] = -(-sides[axis] // int(block)) * int(block)
    return math.prod(sides)


def operations_from_model(runtime_model: Any) -> list[Operation]:
    """runtime_model: of `CompiledModel.get_runtime_model()`."""
    operations = []
    for node in runtime_model.get_ops():
        info: Mapping[str, Any] = node.get_rt_info()
        layouts = _text(info["outputLayouts"]).split(",")
        inputs = tuple((source.get_node().get_friendly_name(), source.get_index()) for source in node.input_values())
        output_bytes = tuple(
            stored_elements(tuple(output.get_shape()), layouts[index] if index < len(layouts) else "")
            * -(-output.get_element_type().bitwidth // 8)
            for index, output in enumerate(node.outputs())
        )
        order = int(_text(info["execOrder"]))
        operations.append(Operation(node.get_friendly_name(), _text(info["layerType"]), order, inputs, output_bytes))
    return operations


def _text(value: Any) -> str:
    """Of an entry of a node's runtime information, which is a string or holds one, depending on the release."""
    return str(getattr(value, "value", value))


def inference_bytes(runtime_model: Any, output_bytes: int) -> int:
    """Beside the weights, rather too high. output_bytes: of the result, which its request and its reader hold too."""
    return round(largest_live_bytes(operations_from_model(runtime_model)) * (1 + SCRATCH_SHARE)) + 2 * output_bytes
