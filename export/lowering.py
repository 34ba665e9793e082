"""Lowerings as data: how a target wants activations, floats and norms written."""

from __future__ import annotations

from dataclasses import dataclass

from intsr.errors import UsageError


@dataclass(frozen=True, slots=True)
class Lowering:
    """activation: `uint8` takes asymmetric grids as they are; `int8` is symmetric with zero-point 0, reached by an
    exact shift (METHODS section 5). float_dtype: of everything that is not integer, inputs and outputs included.
    """

    name: str
    activation: str
    float_dtype: str
    opset: int

    def __post_init__(self) -> None:
        if self.activation not in ("uint8", "int8") or self.float_dtype not in ("float32", "float16"):
            raise ValueError(f"activation {self.activation!r} or float_dtype {self.float_dtype!r} is not known")


# Opset 20 is the safest for int8 in TensorRT and ONNX Runtime; GroupNorm has no op there. In OpenVINO both forms take
# the same time, and in ONNX Runtime the InstanceNormalization form is the more exact one (133 against 118 dB).
LOWERINGS = {
    "asymmetric": Lowering("asymmetric", "uint8", "float32", 20),
    "symmetric": Lowering("symmetric", "int8", "float16", 20),
    # The same integers with float32 around them: what a test can compare to the last digits.
    "symmetric-f32": Lowering("symmetric-f32", "int8", "float32", 20),
}
LOWERING_OF_TARGET = {
    "cpu": "asymmetric",
    "onnxruntime": "asymmetric",
    "tensorrt": "symmetric",
    "tensorrt-rtx": "symmetric",
}


def lowering_from_name(name: str) -> Lowering:
    """By its own name or that of a target. Raises UsageError."""
    lowering = LOWERINGS.get(LOWERING_OF_TARGET.get(name, name))
    if lowering is None:
        raise UsageError("--target", repr(name), f"one of {', '.join([*LOWERINGS, *LOWERING_OF_TARGET])}")
    return lowering
