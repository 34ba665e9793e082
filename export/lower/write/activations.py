"""Lower one quantized layer: the activation's Q/DQ pair, integer weights, and the bias that a shift owes.

Algebra of the symmetric lowering (docs/theory.md, "Exact lowerings"), with D the scale, z the zero-point, b the bits:

    x^ = (q - z) D  and  q' = q - 2**(b-1)   =>   x^ = q' D + c,   c = (2**(b-1) - z) D
    W x^ + bias = W (q' D) + (bias + c sum(W))

q' = clamp(R((x - c) / D), -2**(b-1), 2**(b-1) - 1) has zero-point 0. A zero-padded convolution adds real zeros,
that is q' D = -c: so pad x with 0 before the shift, and run the convolution without padding.

A LET that found no norm or row to go into is x / s - (d / s + c) in front of Q; a padded 0 becomes -d / s - c.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer
from intsr.export.onnx.builder import GraphBuilder
from intsr.kernels.quantizer import QuantParams, dequantize, quantize
from intsr.kernels.rotation import hadamard
from intsr.targets.lowering import Lowering

# The container of a lowering that leaves activations alone.
FLOAT = "float"


@dataclass(frozen=True, slots=True)
class GridPlan:
    """How a grid is written. shift: c, subtracted before Q, 0 where none is needed. zero_point: of Q and DQ.
    clip: the real ends (after the shift) where the container has codes that the grid has not, else None.
    """

    shift: float
    zero_point: int
    clip: tuple[float, float] | None


def plan_grid(params: QuantParams, container: str) -> GridPlan:
    """Exact rewriting of an asymmetric grid for a container of `uint8` (any zero-point) or `int8` (zero-point 0).

    `float` has no grid: nothing is shifted.
    """
    if container == FLOAT:
        return GridPlan(0.0, 0, None)
    limits = np.iinfo(container)
    # Stored code = grid code + first.
    if container == "uint8":
        first, zero_point = 0, params.zero_point if 0 <= params.zero_point <= limits.max else 0
    else:
        # Codes minus zero-point fit as they are on grids of few bits; 8 bits must be centred.
        fits = limits.min <= -params.zero_point and params.qmax - params.zero_point <= limits.max
        first, zero_point = -params.zero_point if fits else -(2 ** (params.bits - 1)), 0
    last = first + params.qmax
    shift = (zero_point - first - params.zero_point) * params.scale
    ends = ((first - zero_point) * params.scale, (last - zero_point) * params.scale)
    return GridPlan(shift, zero_point, None if (first, last) == (limits.min, limits.max) else ends)


@dataclass(slots=True)
class ActivationWriter:
    """Writes Q/DQ pairs; one pair serves every consumer of the same value on the same grid with the same padding."""

    builder: GraphBuilder
    _pairs: dict[tuple[str, QuantParams, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _rotated: dict[tuple[str, int], str] = field(default_factory=dict)

    def write(self, value: str, layer: FoldedLayer, pads: tuple[int, ...]) -> tuple[str, float, bool]:
        """Returns (dequantized value, shift c, whether `pads` is already applied).

        pads: the convolution's (top, left, bottom, right), all zero for none.
        """
        params = layer.activation
        if params is None:
            return value, 0.0, False
        plan = plan_grid(params, self.builder.lowering.activation)
        value = self._rotate(value, layer)
        pad_first = any(pads) and (plan.shift != 0.0 or layer.let_shift is not None)
        let = b"".join(a.tobytes() for a in (layer.let_scale, layer.let_shift) if a is not None)
        key = (value, params, pads if pad_first else (), let)
        if key not in self._pairs:
            self._pairs[key] = self._write_pair(value, layer, plan, pads if pad_first else ())
        return self._pairs[key], plan.shift, pad_first

    def _rotate(self, value: str, layer: FoldedLayer) -> str:
        """H x, written once for all layers that read it."""
        size = layer.rotation
        if not size:
            return value
        key = value, size
        if key not in self._rotated:
            b, site, block = self.builder, layer.site, hadamard(size)
            channels = layer.weight_codes.shape[1]
            if layer.weight_codes.ndim == 4:
                kernel = np.tile(block[:, :, None, None], (channels // size, 1, 1, 1))
                inputs = [value, b.constant(f"{site}.hadamard", kernel)]
                made = b.op("Conv", inputs, f"{site}.rotated", kernel_shape=[1, 1], group=channels // size)
            else:
                blocks = b.op("Reshape", [value, b.constant(f"{site}.blocks", [0, 0, -1, size])], f"{site}.split")
                turned = b.op("MatMul", [blocks, b.constant(f"{site}.hadamard", block)], f"{site}.turned")
                made = b.op("Reshape", [turned, b.constant(f"{site}.whole", [0, 0, channels])], f"{site}.rotated")
            self._rotated[key] = made
        return self._rotated[key]

    def _write_pair(self, value: str, layer: FoldedLayer, plan: GridPlan, pads: tuple[int, ...]) -> str:
        b, params, site = self.builder, layer.activation, layer.site
        assert params is not None
        if pads:
            full = [0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]]
            value = b.op("Pad", [value, b.constant(f"{site}.pads", full)], f"{site}.pad", mode="constant")
        channels = (1, -1, *[1] * (layer.weight_codes.ndim - 2)) if layer.weight_codes.ndim > 2 else (-1,)
        offset: NDArray[np.float32] = np.array(plan.shift, np.float32)
        if layer.let_scale is not None:
            inverse = (1 / layer.let_scale).reshape(channels)
            value = b.op("Mul", [value, b.constant(f"{site}.let_inverse", inverse)], f"{site}.let")
            if layer.let_shift is not None:
                offset = (layer.let_shift / layer.let_scale).reshape(channels) + offset
        if np.any(offset):
            value = b.op("Sub", [value, b.constant(f"{site}.shift", offset)], f"{site}.shifted")
        if b.lowering.activation == FLOAT:
            return value
        return self._quantize(value, params, plan, site)

    def write_grid(self, value: str, params: QuantParams, name: str) -> str:
        """A value on a grid, for whatever reads it: the shift that the container needs is added back.

        Raises ExportError in a weight-only lowering: the methods that ask for it are about activations.
        """
        if self.builder.lowering.activation == FLOAT:
            raise ExportError(name, "quantized attention", "float activations", "leave --activations fp16 out")
        plan = plan_grid(params, self.builder.lowering.activation)
        if not plan.shift:
            return self._quantize(value, params, plan, name)
        b, shift = self.builder, np.float32(plan.shift)
        value = b.op("Sub", [value, b.constant(f"{name}.shift", shift)], f"{name}.shifted")
        value = self._quantize(value, params, plan, name)
        return b.op("Add", [value, b.constant(f"{name}.unshift", shift)], f"{name}.unshifted")

    def _quantize(self, value: str, params: QuantParams, plan: GridPlan, site: str) -> str:
        """Q and DQ, with a Clip in front where the container has codes that the grid has not."""
        b = self.builder
        if plan.clip is not None:
            ends = [b.constant(f"{site}.{n}", np.float32(v)) for n, v in zip(("low", "high"), plan.clip, strict=True)]
            value = b.op("Clip", [value, *ends], f"{site}.clipped")
        container = np.dtype(b.lowering.activation)
        scale = b.constant(f"{site}.input_scale", np.float32(params.scale))
        zero_point = b.constant(f"{site}.input_zero_point", np.array(plan.zero_point, container))
        codes = b.op("QuantizeLinear", [value, scale, zero_point], f"{site}.quantize")
        return b.op("DequantizeLinear", [codes, scale, zero_point], f"{site}.dequantize")


def value_outside(layer: FoldedLayer, lowering: Lowering) -> NDArray[np.float32]:
    """x0: what the layer reads where x is padded with 0. float32, (Cin,), or (1,) where all channels agree."""
    value = np.zeros(1, np.float32)
    if layer.let_scale is not None and layer.let_shift is not None:
        value = -layer.let_shift / layer.let_scale
    if layer.activation is None or lowering.activation == FLOAT:
        return value
    return dequantize(quantize(value, layer.activation), layer.activation)


def shifted_bias(bias: NDArray[np.float32] | None, layer: FoldedLayer, shift: float) -> NDArray[np.float32] | None:
    """bias + c sum(W) per output channel; None where there is neither."""
    if shift == 0.0:
        return bias
    rows = layer.weight_codes.reshape(len(layer.weight_codes), -1)
    sums = rows.sum(axis=1, dtype=np.int64) * layer.weight_scale.astype(np.float64)
    start = np.zeros(len(sums)) if bias is None else bias.astype(np.float64)
    total: NDArray[np.float32] = (start + shift * sums).astype(np.float32)
    return total
