"""Find, before the walk, the nodes of a trace that a lowering writes as one.

A pad and the convolutions behind it become convolutions that pad. Three linears of one input, each with a view and a
transpose into heads behind it, become one of each, and a split. A linear whose output is cut in two becomes two. A
convolution whose output is four phases becomes four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

import intsr.calib.models.phases  # noqa: F401  it registers intsr::join_phases
from intsr.export.fold.fold import FoldedLayer
from intsr.targets.lowering import Lowering

aten: Any = torch.ops.aten
CONVOLUTION, LINEAR, PAD = aten.conv2d.default, aten.linear.default, aten.pad.default
JOIN = torch.ops.intsr.join_phases.default
RESHAPES = (aten.reshape.default, aten.view.default)
CHUNK = aten.chunk.default
ATTENTION = aten.scaled_dot_product_attention.default
Pads = tuple[int, int, int, int]


@dataclass(slots=True)
class Patterns:
    """pads: a pad whose value is its input, the convolutions behind it pad (top, left, bottom, right).
    projections: attention -> its q, k and v linears. halves: a chunk in two -> the linear in front of it.
    covered: nodes that need no lowering of their own.
    """

    pads: dict[fx.Node, Pads] = field(default_factory=dict)
    projections: dict[fx.Node, tuple[fx.Node, fx.Node, fx.Node]] = field(default_factory=dict)
    halves: dict[fx.Node, fx.Node] = field(default_factory=dict)
    covered: set[fx.Node] = field(default_factory=set)


def find_patterns(nodes: list[fx.Node], layers: Mapping[fx.Node, FoldedLayer], lowering: Lowering) -> Patterns:
    """layers: the integer layer of each convolution and linear that has one."""
    found = Patterns()
    for node in nodes:
        if lowering.borders == "bias" and _is(node, PAD):
            _find_pads(node, layers, found)
        if lowering.merge_projections and _is(node, ATTENTION):
            _find_projections(node, layers, found)
        if _is(node, JOIN) and _is(node.args[0], CONVOLUTION) and len(node.args[0].users) == 1:
            found.covered.add(node.args[0])
        if lowering.split_halves and _is(node, CHUNK):
            _find_halves(node, layers, found)
    return found


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in targets


def _find_pads(node: fx.Node, layers: Mapping[fx.Node, FoldedLayer], found: Patterns) -> None:
    amounts: Any = node.args[1]
    plain = len(node.args) == 2 or (node.args[2] == "constant" and node.args[3:] in ((), (0.0,), (None,)))
    readers = [layers.get(user) if _is(user, CONVOLUTION) else None for user in node.users]
    if (
        plain
        and not node.kwargs
        and len(amounts) == 4
        and min(amounts) >= 0
        and all(reader is not None and reader.takes_padding for reader in readers)
    ):
        left, right, top, bottom = amounts
        found.pads[node] = (top, left, bottom, right)


def _find_projections(node: fx.Node, layers: Mapping[fx.Node, FoldedLayer], found: Patterns) -> None:
    chains = [_projection(value) for value in node.args[:3]]
    linears = tuple(chain[-1] for chain in chains if chain)
    if len(linears) != 3 or any(linear not in layers for linear in linears):
        return
    first = linears[0]
    same_input = all(linear.args[0] is first.args[0] for linear in linears)
    same_shape = len({linear.meta["val"].shape for linear in linears}) == 1
    if same_input and same_shape and all(_same_grid(layers[first], layers[linear]) for linear in linears):
        found.projections[node] = linears
        found.covered.update(link for chain in chains for link in chain)


def _find_halves(node: fx.Node, layers: Mapping[fx.Node, FoldedLayer], found: Patterns) -> None:
    linear, count = node.args[:2]
    axis = int(node.args[2]) if len(node.args) > 2 else int(node.kwargs.get("dim", 0))
    if not (_is(linear, LINEAR) and linear in layers and len(linear.users) == 1 and count == 2):
        return
    shape = linear.meta["val"].shape
    if axis % len(shape) == len(shape) - 1 and shape[-1] % 2 == 0:
        found.halves[node] = linear
        found.covered.add(linear)


def _projection(value: Any) -> tuple[fx.Node, ...]:
    """(transpose, view, linear) behind attention's operand, each for it alone; () where it is anything else."""
    chain = []
    for targets in ((aten.transpose.int,), RESHAPES, (LINEAR,)):
        if not _is(value, *targets) or len(value.users) != 1:
            return ()
        chain.append(value)
        value = value.args[0]
    swapped = sorted(int(axis) for axis in chain[0].args[1:3]) == [1, 2]
    return tuple(chain) if swapped and len(chain[1].meta["val"].shape) == 4 else ()


def _same_grid(first: FoldedLayer, other: FoldedLayer) -> bool:
    if first.activation is None or (first.activation, first.rotation) != (other.activation, other.rotation):
        return False
    pairs = ((first.let_scale, other.let_scale), (first.let_shift, other.let_shift))
    return all((a is None) == (b is None) and (a is None or bool((a == b).all())) for a, b in pairs)
