"""Whether OpenVINO computes integers exactly on this CPU.

Without VNNI its kernels add products of bytes in pairs in 16 bits: 2 x 255 x 127 = 64,770 becomes 32,767, without a
word, and pictures are wrong. There, integer layers are computed in float32, on the same grids: slower, and right.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

IN_FLOAT_NOTE = "this CPU multiplies bytes inexactly (no VNNI): integer layers are computed in float32, slower"
_CHANNELS = 64


@cache
def integers_are_exact() -> bool:
    """Multiply the largest codes there are, as engines do. Takes some milliseconds, once a process."""
    import openvino
    from openvino import opset13

    most, shape = np.float32(255), (1, _CHANNELS, 8, 8)
    x = opset13.parameter(list(shape), np.float32)
    ends = [opset13.constant(end) for end in (np.float32(0), most, np.float32(0), most)]
    codes = opset13.constant(np.full((_CHANNELS, _CHANNELS, 1, 1), 127, np.int8))
    scale = opset13.constant(np.full((_CHANNELS, 1, 1, 1), 1 / 127, np.float32))
    weight = opset13.multiply(opset13.convert(codes, np.float32), scale)
    y = opset13.convolution(opset13.fake_quantize(x, *ends, 256), weight, [1, 1], [0, 0], [0, 0], [1, 1])
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)
    got = compiled(np.full(shape, most))[0]
    return bool(np.allclose(got, most * _CHANNELS, rtol=1e-3))


def integer_settings(quantized: bool) -> dict[str, Any]:
    """Return what to compile a model with, so that its integers are what they are elsewhere: nothing, or what makes
    floats of them.
    """
    return {} if not quantized or integers_are_exact() else {"LP_TRANSFORMS_MODE": "NO"}
