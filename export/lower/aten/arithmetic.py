"""Elementwise operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from intsr.errors import ExportError
from intsr.export.lower.context import LoweringContext, Value, lowers

aten: Any = torch.ops.aten


@lowers(aten.silu.default)
def silu(net: LoweringContext, node: fx.Node) -> Value:
    x = net.value(node.args[0])
    return net.builder.op("Mul", [x, net.builder.op("Sigmoid", [x], f"{node.name}.sigmoid")], node.name)


@lowers(aten.gelu.default)
def gelu(net: LoweringContext, node: fx.Node) -> Value:
    approximate = node.kwargs.get("approximate", "none")
    return net.builder.op("Gelu", [net.value(node.args[0])], node.name, approximate=approximate)


@lowers(aten.dropout.default, aten.contiguous.default, aten.clone.default)
def identity(net: LoweringContext, node: fx.Node) -> Value:
    return net.value(node.args[0])


@lowers(aten.to.dtype)
def checked_dtype(net: LoweringContext, node: fx.Node) -> Value:
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:
        raise ExportError(node.name, f"a cast to {node.meta['val'].dtype}", "one float type throughout")
    return net.value(node.args[0])


# What is written, and the operand on the right that changes nothing: diffusers divides by output_scale_factor = 1.
BINARY: dict[Any, tuple[str, float | None]] = {
    aten.add.Tensor: ("Add", 0.0),
    aten.mul.Tensor: ("Mul", 1.0),
    aten.div.Tensor: ("Div", 1.0),
    aten.sub.Tensor: ("Sub", None),
}


@lowers(*BINARY)
def binary(net: LoweringContext, node: fx.Node) -> Value:
    op_type, neutral = BINARY[node.target]
    if node.kwargs:
        raise ExportError(str(node.name), f"arguments {sorted(node.kwargs)}", f"plain {op_type}")
    left, right = node.args
    if neutral is not None and isinstance(right, int | float) and right == neutral:
        return net.value(left)
    inputs = [
        net.value(v) if isinstance(v, fx.Node) else net.builder.constant(f"{node.name}.c", np.float32(v))
        for v in (left, right)
    ]
    return net.builder.op(op_type, inputs, node.name)
