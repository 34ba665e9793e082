"""The places of the CUDA sources and of what is compiled of them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "cuda"


def cuda_path(source: str) -> Path:
    """source: a name in kernels/cuda, or a path without its ending."""
    return FOLDER / f"{source}.cu"


def fatbin_path(source: str) -> Path:
    return cuda_path(source).with_suffix(".fatbin")
