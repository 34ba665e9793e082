"""Quantizers as PassionSR's published checkpoints have them: numbers only, NumPy only, by site.

They say more than `SiteQuantizer`: a layer cut into two pieces with grids of their own, asymmetric weights, quantized
biases, attention quantizers, float32 scales that are not rounded to what fp16 can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intsr.calib.calibration.types import Calibration, Record
from intsr.errors import CalibrationError
from intsr.types import MAX_BITS, MIN_BITS, is_kind

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
ATTENTION_ROLES = ("query", "key", "weights", "value")


@dataclass(frozen=True, slots=True, eq=False)
class PassionSRLayer:
    """The quantizers of one Conv2d or Linear. Raises ValueError for numbers that no grid can have."""

    # Whether it is one in PassionSR's model, which shifts its input by -o; a linear layer shifts by +o.
    convolution: bool
    weight_bits: int
    activation_bits: int
    # s > 0 and o of each input channel, (Cin,).
    scale: F32
    offset: F32
    # The range of each output channel of W s, (pieces, Cout): one piece, or two that meet at Cin // 2.
    weight_low: F32
    weight_high: F32
    # (pieces,), of the halves of the input's dimension 1: channels of a convolution's input, tokens of a linear's.
    input_low: F64
    input_high: F64
    # (2,), or None for a layer without bias.
    bias_range: F64 | None = None

    def __post_init__(self) -> None:
        ranges: list[tuple[Any, Any]] = [(self.weight_low, self.weight_high), (self.input_low, self.input_high)]
        if self.bias_range is not None:
            ranges.append((self.bias_range[:1], self.bias_range[1:]))
        _check(self, (self.scale,), ranges)
        if len(self.scale) != len(self.offset) or len(self.weight_low) != len(self.input_low):
            raise ValueError("scale and offset, and pieces of weights and input, must be of one length")


@dataclass(frozen=True, slots=True, eq=False)
class PassionSRAttention:
    """The quantizers of one attention block. Raises ValueError for numbers that no grid can have."""

    activation_bits: int
    # (head channels,): what multiplies q and divides k.
    scale_qk: F32
    # (key tokens,), which fixes the size of a tile: what multiplies the softmax and divides v.
    scale_vw: F32
    # (4,): ranges of q s_qk, k / s_qk, softmax s_vw and v / s_vw, in the order of ATTENTION_ROLES.
    low: F64
    high: F64

    def __post_init__(self) -> None:
        _check(self, (self.scale_qk, self.scale_vw), [(self.low, self.high)])
        if self.low.shape != (len(ATTENTION_ROLES),):
            raise ValueError("four ranges are needed")

    def range_of(self, role: str) -> tuple[float, float]:
        """Return (low, high) of one of ATTENTION_ROLES."""
        index = ATTENTION_ROLES.index(role)
        return float(self.low[index]), float(self.high[index])


@dataclass(frozen=True, slots=True)
class PassionSRQuantizers:
    """Everything quantized in a model, by site."""

    layers: Mapping[str, PassionSRLayer]
    attentions: Mapping[str, PassionSRAttention]

    def records(self) -> dict[str, dict[str, Record]]:
        """Return what a calibration keeps as `imported`."""
        return {
            kind: {site: _record(quantizer) for site, quantizer in quantizers.items()}
            for kind, quantizers in (("layers", self.layers), ("attentions", self.attentions))
        }

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> PassionSRQuantizers:
        """Read an imported calibration. Raises CalibrationError for records that do not fit."""
        quantizers: dict[str, dict[str, Any]] = {}
        for kind, made in (("layers", PassionSRLayer), ("attentions", PassionSRAttention)):
            records = calibration.imported.get(kind, {})
            try:
                quantizers[kind] = {site: made(**record) for site, record in records.items()}
            except (TypeError, ValueError) as error:
                where = f"imported calibration of {calibration.model}"
                raise CalibrationError(where, f"{kind}: {error}", fix="import again") from error
        return cls(**quantizers)


def _record(quantizer: PassionSRLayer | PassionSRAttention) -> Record:
    values = {field.name: getattr(quantizer, field.name) for field in fields(quantizer)}
    return {name: value for name, value in values.items() if value is not None}


def _check(
    quantizer: PassionSRLayer | PassionSRAttention, scales: tuple[F32, ...], ranges: list[tuple[Any, Any]]
) -> None:
    for name, value in _record(quantizer).items():
        if name.endswith("_bits") and not (is_kind(value, int) and MIN_BITS <= value <= MAX_BITS):
            raise ValueError(f"{name} is {value!r}, expected {MIN_BITS} to {MAX_BITS}")
        if name == "convolution" and not is_kind(value, bool):
            raise ValueError(f"{name} is {value!r}, expected true or false")
        if isinstance(value, np.ndarray):
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{name} is not finite")
            value.flags.writeable = False
    if not all(np.all(scale > 0) for scale in scales):
        raise ValueError("scales must be positive")
    if not all(low.shape == high.shape and np.all(low < high) for low, high in ranges):
        raise ValueError("every range must have its low end below its high end")
