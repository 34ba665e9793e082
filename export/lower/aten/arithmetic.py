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
    return net.builder.op(
        "Gelu", [net.value(node.args[0])], node.name, approximate=node.kwargs.get("approximate", "none")
    )


@lowers(aten.dropout.default, aten.contiguous.default, aten.clone.default)
def identity(net: LoweringContext, node: fx.Node) -> Value:
    return net.value(node.args[0])


@lowers(aten.to.dtype)
def checked_dtype(net: LoweringContext, node: fx.Node) -> Value:
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:
        raise ExportError(node.name, f"a cast to {node.meta['val'].dtype}", "one float type throughout")
    return net.value(node.args[0])


# Operator -> the operand on the right that changes nothing: diffusers divides by output_scale_factor = 1.
NEUTRAL = {"Add": 0.0, "Mul": 1.0, "Div": 1.0, "Sub": None}


@lowers(aten.add.Tensor)
def add(net: LoweringContext, node: fx.Node) -> Value:
    return _binary(net, node, "Add")


@lowers(aten.mul.Tensor)
def multiply(net: LoweringContext, node: fx.Node) -> Value:
    return _binary(net, node, "Mul")


@lowers(aten.div.Tensor)
def divide(net: LoweringContext, node: fx.Node) -> Value:
    return _binary(net, node, "Div")


@lowers(aten.sub.Tensor)
def subtract(net: LoweringContext, node: fx.Node) -> Value:
    return _binary(net, node, "Sub")


def _binary(net: LoweringContext, node: fx.Node, op_type: str) -> Value:
    if node.kwargs:
        raise ExportError(str(node.name), f"arguments {sorted(node.kwargs)}", f"plain {op_type}")
    left, right = node.args
    neutral = NEUTRAL[op_type]
    if neutral is not None and isinstance(right, int | float) and right == neutral:
        return net.value(left)
    inputs = [
        net.value(v) if isinstance(v, fx.Node) else net.builder.constant(f"{node.name}.c", np.float32(v))
        for v in (left, right)
    ]
    return net.builder.op(op_type, inputs, node.name)
