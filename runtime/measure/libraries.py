"""A target's library, loaded before anything is measured: else the first engine would be charged with it."""

from __future__ import annotations

import numpy as np


def load_library(target: str) -> None:
    """Import it and have it run something tiny, where it is installed. GPU libraries are loaded with their device,
    whose memory is counted apart.
    """
    if target == "cpu":
        _load_openvino()
    elif target == "onnxruntime":
        import onnxruntime  # noqa: F401


def _load_openvino() -> None:
    import openvino
    from openvino import opset13

    shape = (1, 3, 8, 8)
    x = opset13.parameter(list(shape), np.float32)
    kernel = opset13.constant(np.ones((3, 3, 3, 3), np.float32))
    convolved = opset13.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([convolved], [x], "warm_up")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    compiled(np.zeros(shape, np.float32))
