"""HYPIR on SD 2.1: a LoRA of rank 256 on the UNet, a flat dict of its tensors and nothing else.

`MODULE.lora_A.default.weight` and `lora_B`, of every module that the endings below name: the original asserts that
these are the keys. lora_alpha is the rank, so that s is 1; the rank is read off the shapes. The VAE and the text
encoder are the base model's own. The UNet is told t = 200, and the scheduler's x0 at 200 is taken.
"""

from __future__ import annotations

from typing import Any

import torch

from intsr.calib.models.families.family import Family, Lora, Randomize, Shapes, ending_with, matrices
from intsr.calib.models.families.random_pairs import random_pair
from intsr.calib.models.lora import AdapterSize, read_pairs
from intsr.calib.models.tensor_files import Checkpoint
from intsr.errors import ModelError
from intsr.types import RunDefaults

MODULES = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)
RANK = 256
ADAPTER = "default"
EXPECTED = "HYPIR's LoRA: MODULE.lora_A.default.weight and lora_B, and nothing else"


def _claims(checkpoint: Checkpoint) -> bool:
    return not checkpoint.values and any(f".lora_A.{ADAPTER}.weight" in name for name in checkpoint.tensors)


def _read(checkpoint: Checkpoint) -> Lora:
    ranks = [len(tensor) for name, tensor in checkpoint.tensors.items() if ".lora_A." in name and tensor.ndim]
    if not ranks:
        raise ModelError(checkpoint.path, "no lora_A", EXPECTED)
    size = AdapterSize(ranks[0], 1.0, "as in its first module: HYPIR has one rank")
    updates = read_pairs(
        "unet", checkpoint.tensors, checkpoint.path, lambda _, adapter: size if adapter == ADAPTER else None, EXPECTED
    )
    return Lora(checkpoint.path, FAMILY, {"unet": updates}, required={"unet": ending_with(MODULES)})


def _make(shapes: Shapes, randomize: Randomize) -> dict[str, Any]:
    state: dict[str, torch.Tensor] = {}
    for module in filter(ending_with(MODULES).fullmatch, matrices(shapes["unet"])):
        a, b = (f"{module}.lora_{side}.{ADAPTER}.weight" for side in "AB")
        state |= random_pair((a, b), shapes["unet"][f"{module}.weight"], RANK, 1.0, randomize)
    return state


FAMILY = Family(
    name="hypir",
    title="HYPIR",
    published="HYPIR_sd2.pth",
    timestep=200,
    resize_filter="bicubic",
    # Tiles of 512 pixels with a stride of 256.
    defaults=RunDefaults("hypir", "wavelet", tile_px=128, overlap_divisor=2, min_side_px=512),
    licence="HYPIR's weights: non-commercial use only",
    claims=_claims,
    read=_read,
    make=_make,
)
