"""Functions in the place of an engine's networks, and the picture that identity networks make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from intsr.runtime.backends.protocol import Backend
from intsr.runtime.upscaler import Upscaler
from intsr.types import TensorInfo

Function = Callable[[np.ndarray], np.ndarray]


def identity(x: np.ndarray) -> np.ndarray:
    return x


class FunctionNetwork:
    def __init__(self, function: Function = identity, side_px: int = 32, dtype: str = "float32", batch: int = 1):
        self.function = function
        self.input = self.output = TensorInfo("x", (batch, 3, side_px, side_px), dtype)

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.function(x), self.output.dtype)

    def close(self) -> None:
        pass


def upscaler_of(*functions: Function, tile_px: int = 16, upscale_factor: int = 2, **changes: Any) -> Upscaler:
    """Up to three networks, the others before them the identity; tiles overlap by a fourth, no colour fix."""
    side_px = tile_px * upscale_factor
    networks = [FunctionNetwork(function, side_px) for function in (*[identity] * 3, *functions)[-3:]]
    values = {"overlap_px": tile_px // 4, "resize_filter": "bicubic", "color_fix": "none", **changes}
    return Upscaler(Backend(networks), tile_px, upscale_factor=upscale_factor, **values)


def bicubic(pixels: np.ndarray) -> np.ndarray:
    """Twice as large."""
    size = (pixels.shape[1] * 2, pixels.shape[0] * 2)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
