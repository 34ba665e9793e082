"""The places of the CUDA sources and of what is compiled of them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1]
# Sources in kernels/candidates; the others lie in kernels/cuda.
CANDIDATES = ("int8_matmul", "group_norm")


def cuda_path(source: str) -> Path:
    return FOLDER / ("candidates" if source in CANDIDATES else "cuda") / f"{source}.cu"


def fatbin_path(source: str) -> Path:
    return cuda_path(source).with_suffix(".fatbin")
