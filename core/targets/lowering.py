"""Lowerings as data: how a target wants activations, floats and norms written."""

from __future__ import annotations

from dataclasses import dataclass

from intsr.errors import UsageError

# What a target may run with a kernel of ours; `plugin_nodes` writes it.
PLUGINS = ("group-norm",)


@dataclass(frozen=True, slots=True)
class Lowering:
    """activation: `uint8` takes asymmetric grids as they are; `int8` is symmetric with zero-point 0, reached by an
    exact shift (METHODS section 5); `float` leaves activations alone, weights only are integers. float_dtype: of
    everything that is not integer, inputs and outputs included.

    borders: how a shifted grid meets zero padding, exactly either way. `pad`: x is padded in front of the shift, and
    the convolution runs VALID. `bias`: the convolution pads, and what the border then lacks is in its bias.
    weight_scale: of the DequantizeLinear. `channel`: one scale an output channel. `tensor`: one power of two, and the
    channels' own factors behind the product.
    merge_projections: q, k and v of one input as one product. split_halves: a product whose output is cut in two, as
    GEGLU's, as two products.
    group_norm: `instance` or `statistics`, see `norms`. split_rows: integer convolutions with longer rows, and more
    than layers.SPLIT_CHANNELS output channels, are written as several, joined again; 0 for never.
    plugins: which operators are written as nodes of our own (PLUGINS), for an engine that has them.
    """

    name: str
    activation: str
    float_dtype: str
    opset: int
    borders: str = "pad"
    weight_scale: str = "channel"
    merge_projections: bool = False
    split_halves: bool = False
    group_norm: str = "instance"
    split_rows: int = 0
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {
            "activation": ("uint8", "int8", "float"),
            "float_dtype": ("float32", "float16"),
            "borders": ("pad", "bias"),
            "weight_scale": ("channel", "tensor"),
            "group_norm": ("instance", "statistics"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if not set(self.plugins) <= set(PLUGINS):
            raise ValueError(f"plugins {self.plugins} are not of {', '.join(PLUGINS)}")


def _rtx(name: str, float_dtype: str) -> Lowering:
    """What the plans of TensorRT-RTX are best from: docs/tensorrt.md has the measurements."""
    return Lowering(name, "int8", float_dtype, 20, borders="bias", weight_scale="tensor", merge_projections=True)


# Opset 20 is the safest for int8 in TensorRT and ONNX Runtime; GroupNorm has no op there.
LOWERINGS = {
    "asymmetric": Lowering("asymmetric", "uint8", "float32", 20),
    # The same integers, in the form that OpenVINO runs fastest: docs/performance.md.
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
LOWERING_OF_TARGET = {
    "cpu": "asymmetric-cpu",
    "onnxruntime": "asymmetric",
    "tensorrt": "symmetric",
    "tensorrt-rtx": "symmetric-rtx",
}
# What a target takes beside its own: the same integers in another form.
OTHERS_OF_TARGET = {
    "cpu": ("asymmetric",),
    "onnxruntime": ("asymmetric-cpu",),
    "tensorrt": ("symmetric-plugins", "weight-only-plugins"),
}
# The same with plugins. TensorRT-RTX imports none that are compiled ahead of time: docs/tensorrt.md.
PLUGINS_OF_LOWERING = {"symmetric": "symmetric-plugins", "weight-only": "weight-only-plugins"}
PLUGINS_OF_TARGET = {"tensorrt": PLUGINS}
# Targets that take weight-only graphs, too.
WEIGHT_ONLY_OF_TARGET = {"tensorrt": "weight-only", "tensorrt-rtx": "weight-only"}


def lowering_from_name(name: str, plugins: tuple[str, ...] = ()) -> Lowering:
    """By its own name or that of a target. plugins: of PLUGINS, for its form with them. Raises UsageError."""
    lowering = LOWERINGS.get(LOWERING_OF_TARGET.get(name, name))
    if lowering is None:
        raise UsageError("--target", repr(name), f"one of {', '.join([*LOWERINGS, *LOWERING_OF_TARGET])}")
    # A lowering's own name says which engine it is for; two targets may share one.
    if not plugins or lowering.plugins:
        return lowering
    if (name in LOWERING_OF_TARGET and name not in PLUGINS_OF_TARGET) or lowering.name not in PLUGINS_OF_LOWERING:
        raise UsageError("--plugins", f"together with --target {name}", f"target {' or '.join(PLUGINS_OF_TARGET)}")
    return LOWERINGS[PLUGINS_OF_LOWERING[lowering.name]]
