"""Quantizers as PassionSR's official checkpoints have them: numbers only, NumPy only, by site.

They say more than `SiteQuantizer`: a layer cut into two pieces with grids of their own, asymmetric weights, quantized
biases, attention quantizers, float32 scales that are not rounded to what fp16 can hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intsr.types import MAX_BITS, MIN_BITS, is_kind

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
ATTENTION_ROLES = ("query", "key", "weights", "value")


@dataclass(frozen=True, slots=True, eq=False)
class OfficialLayer:
    """One Conv2d or Linear.

    convolution: it is one in the official model, which shifts its input by -o; a linear layer shifts by +o.
    scale, offset: s > 0 and o of each input channel, float32 (Cin,).
    weight_low, weight_high: range of each output channel of W s, float32 (pieces, Cout): one piece, or two that meet
    at Cin // 2. input_low, input_high: float64 (pieces,), of the halves of the input's dimension 1: channels of a
    convolution's input, tokens of a linear layer's. bias_range: float64 (2,), or None for a layer without bias.
    """

    convolution: bool
    weight_bits: int
    activation_bits: int
    scale: F32
    offset: F32
    weight_low: F32
    weight_high: F32
    input_low: F64
    input_high: F64
    bias_range: F64 | None

    def __post_init__(self) -> None:
        _check(self)
        if not np.all(self.scale > 0):
            raise ValueError("scale must be positive")
        pairs: list[tuple[Any, Any]] = [(self.weight_low, self.weight_high), (self.input_low, self.input_high)]
        if self.bias_range is not None:
            pairs.append((self.bias_range[:1], self.bias_range[1:]))
        if not all(low.shape == high.shape and np.all(low < high) for low, high in pairs):
            raise ValueError("every range must have its low end below its high end")
        if len(self.scale) != len(self.offset) or len(self.weight_low) != len(self.input_low):
            raise ValueError("scale and offset, and pieces of weights and input, must be of one length")

    def digest(self) -> str:
        """SHA-256 over every number."""
        return _digest(self)


@dataclass(frozen=True, slots=True, eq=False)
class OfficialAttention:
    """Ranges of q s_qk, k / s_qk, softmax s_vw and v / s_vw, in the order of ATTENTION_ROLES.

    scale_qk: float32 (head channels,). scale_vw: float32 (key tokens,), which fixes the size of a tile.
    low, high: float64 (4,).
    """

    activation_bits: int
    scale_qk: F32
    scale_vw: F32
    low: F64
    high: F64

    def __post_init__(self) -> None:
        _check(self)
        if not (np.all(self.scale_qk > 0) and np.all(self.scale_vw > 0)):
            raise ValueError("scales must be positive")
        if self.low.shape != (len(ATTENTION_ROLES),) or self.high.shape != self.low.shape:
            raise ValueError("four ranges are needed")
        if not np.all(self.low < self.high):
            raise ValueError("every range must have its low end below its high end")

    def range_of(self, role: str) -> tuple[float, float]:
        """(low, high) of one of ATTENTION_ROLES."""
        index = ATTENTION_ROLES.index(role)
        return float(self.low[index]), float(self.high[index])

    def digest(self) -> str:
        """SHA-256 over every number."""
        return _digest(self)


def _check(quantizer: OfficialLayer | OfficialAttention) -> None:
    for field in fields(quantizer):
        value = getattr(quantizer, field.name)
        if field.name.endswith("_bits") and not (is_kind(value, int) and MIN_BITS <= value <= MAX_BITS):
            raise ValueError(f"{field.name} is {value!r}, expected {MIN_BITS} to {MAX_BITS}")
        if field.name == "convolution" and not is_kind(value, bool):
            raise ValueError(f"{field.name} is {value!r}, expected true or false")
    for name, value in arrays_of(quantizer).items():
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{name} is not finite")
        value.flags.writeable = False


def arrays_of(quantizer: OfficialLayer | OfficialAttention) -> dict[str, NDArray[Any]]:
    """The tensors that are there, by field."""
    values = {field.name: getattr(quantizer, field.name) for field in fields(quantizer)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def facts_of(quantizer: OfficialLayer | OfficialAttention) -> dict[str, Any]:
    """Everything that is no tensor, by field, as JSON has it."""
    values = {field.name: getattr(quantizer, field.name) for field in fields(quantizer)}
    return {name: value for name, value in values.items() if isinstance(value, bool | int)}


def from_parts(cls: Any, facts: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The reverse of `facts_of` and `arrays_of`. Raises TypeError, ValueError for what does not fit."""
    if not isinstance(facts, dict):
        raise ValueError(f"{facts!r} is no object")
    absent = {"bias_range": None} if cls is OfficialLayer and "bias_range" not in tensors else {}
    return cls(**facts, **tensors, **absent)


def _digest(quantizer: OfficialLayer | OfficialAttention) -> str:
    digest = hashlib.sha256(repr(sorted(facts_of(quantizer).items())).encode())
    for name, array in arrays_of(quantizer).items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
