"""Lowerings as data: how a target wants activations, floats and norms written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FloatDtype = Literal["float32", "float16"]
# What a target may run with a kernel of ours; `plugin_nodes` writes it.
PLUGINS = ("group-norm",)
# In the names of all nodes between GroupNorm's reductions over x and its affine step: builders keep them in float32
# whatever runs around them.
STATISTICS = ".statistics."


@dataclass(frozen=True, slots=True)
class Lowering:
    """The form in which a target's graphs are written."""

    name: str
    # `uint8` takes asymmetric grids as they are; `int8` is symmetric with zero-point 0, reached by an exact shift
    # (docs/theory.md, "Exact lowerings"); `float` leaves activations alone: weights only are integers.
    activation: Literal["uint8", "int8", "float"]
    # Of everything that is not integer, inputs and outputs included.
    float_dtype: FloatDtype
    opset: int
    # How a shifted grid meets zero padding, exactly either way. `pad`: x is padded in front of the shift, and the
    # convolution runs VALID. `bias`: the convolution pads, and what the border then lacks is in its bias.
    borders: Literal["pad", "bias"] = "pad"
    # Of the DequantizeLinear. `channel`: one scale an output channel. `tensor`: one power of two, and the channels'
    # own factors behind the product.
    weight_scale: Literal["channel", "tensor"] = "channel"
    # q, k and v of one input become one product.
    merge_projections: bool = False
    # A product whose output is cut in two, as GEGLU's, becomes two products.
    split_halves: bool = False
    # `instance` or `statistics`: see export/lower/write/group_norm.py.
    group_norm: Literal["instance", "statistics"] = "instance"
    # Integer convolutions with longer rows than this, and more than `layers.SPLIT_CHANNELS` output channels, are
    # written as several and joined again; 0 for never.
    split_rows: int = 0
    # Weights whose grids have 4 bits or fewer are initializers of 4 bits, two a byte.
    packed: bool = False
    # Operators that are written as nodes of our own, of PLUGINS, for an engine that has them.
    plugins: tuple[str, ...] = ()


def _rtx(name: str, float_dtype: FloatDtype) -> Lowering:
    """Return the form that TensorRT-RTX makes the best plans of: docs/compile/tensorrt.md has the measurements."""
    return Lowering(name, "int8", float_dtype, 20, borders="bias", weight_scale="tensor", merge_projections=True)


# Opset 20 is the safest for int8 in TensorRT and ONNX Runtime; GroupNorm has no op there.
LOWERINGS = {
    "asymmetric": Lowering("asymmetric", "uint8", "float32", 20),
    # The same with codes of few bits packed, which ONNX has from opset 21 on.
    "asymmetric-packed": Lowering("asymmetric-packed", "uint8", "float32", 21, packed=True),
    # The same integers, in the form that OpenVINO runs fastest: docs/measure/performance.md.
    "asymmetric-cpu": Lowering(
        "asymmetric-cpu", "uint8", "float32", 20, split_halves=True, group_norm="statistics", split_rows=128
    ),
    "symmetric": Lowering("symmetric", "int8", "float16", 20),
    "symmetric-rtx": _rtx("symmetric-rtx", "float16"),
    "weight-only": Lowering("weight-only", "float", "float16", 20, borders="bias"),
    # A norm with its quantizer in one node: nothing may come between them, so that borders are in the bias.
    "symmetric-plugins": Lowering("symmetric-plugins", "int8", "float16", 20, borders="bias", plugins=PLUGINS),
    "weight-only-plugins": Lowering("weight-only-plugins", "float", "float16", 20, borders="bias", plugins=PLUGINS),
    # The same integers with float32 around them: what a test can compare to the last digits.
    "symmetric-f32": Lowering("symmetric-f32", "int8", "float32", 20),
    "symmetric-rtx-f32": _rtx("symmetric-rtx-f32", "float32"),
    "weight-only-f32": Lowering("weight-only-f32", "float", "float32", 20, borders="bias"),
}
# The same with plugins. TensorRT-RTX imports none that are compiled ahead of time: docs/compile/tensorrt.md.
PACKED_OF_LOWERING = {"asymmetric": "asymmetric-packed"}
PLUGINS_OF_LOWERING = {"symmetric": "symmetric-plugins", "weight-only": "weight-only-plugins"}
