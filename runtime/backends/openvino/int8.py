"""Which integers OpenVINO multiplies exactly on this CPU, and floats in the place of others.

Without VNNI its kernels add products of bytes in pairs in 16 bits: 2 x 255 x 127 = 64,770 becomes 32,767, without a
word, and pictures are wrong. Of weights of seven bits the sum fits: 2 x 255 x 64 = 32,640. Layers with larger codes
are computed in float32 there, on the same grids: slower, and right.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

IN_FLOAT_NOTE = (
    "this CPU multiplies bytes exactly by weights of 7 bits at most (no VNNI): layers of more are computed in "
    "float32, slower"
)
# The largest codes of weights of eight bits, and of seven.
EIGHT_BITS, SEVEN_BITS = 127, 64
_CHANNELS = 64


@cache
def largest_exact_code() -> int:
    """Return `EIGHT_BITS`, `SEVEN_BITS` or 0: up to which code of weights products are exact here.

    Tries the largest codes there are, as engines multiply them. Takes some milliseconds, once a process.
    """
    return next((code for code in (EIGHT_BITS, SEVEN_BITS) if _is_exact(code)), 0)


def _is_exact(code: int) -> bool:
    import openvino
    from openvino import opset13

    most, shape = np.float32(255), (1, _CHANNELS, 8, 8)
    x = opset13.parameter(list(shape), np.float32)
    ends = [opset13.constant(end) for end in (np.float32(0), most, np.float32(0), most)]
    codes = opset13.constant(np.full((_CHANNELS, _CHANNELS, 1, 1), code, np.int8))
    scale = opset13.constant(np.full((_CHANNELS, 1, 1, 1), 1 / code, np.float32))
    weight = opset13.multiply(opset13.convert(codes, np.float32), scale)
    y = opset13.convolution(opset13.fake_quantize(x, *ends, 256), weight, [1, 1], [0, 0], [0, 0], [1, 1])
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)
    got = compiled(np.full(shape, most))[0]
    return bool(np.allclose(got, most * _CHANNELS, rtol=1e-3))


def make_floats_of_wide_codes(model: Any) -> int:
    """Replace the integer weights of an openvino.Model that are not multiplied exactly here, layer by layer.

    Returns how many bytes of floats that made.
    """
    from openvino import opset13

    limit, made_bytes = largest_exact_code(), 0
    for operation in model.get_ordered_ops() if limit < EIGHT_BITS else ():
        if operation.get_type_name() != "Convert":
            continue
        source = operation.input_value(0).get_node()
        if source.get_type_name() != "Constant" or source.get_element_type().get_type_name() != "i8":
            continue
        codes = source.data
        if max(int(codes.max()), -int(codes.min())) > limit:
            floats = opset13.constant(codes.astype(np.float32))
            operation.output(0).replace(floats.output(0))
            made_bytes += floats.data.nbytes
    return made_bytes
