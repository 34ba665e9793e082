"""The digest that a calibration is bound to: SHA-256 over the files and settings that decide what a model computes.

Neither a model's name nor where it lies is among them, nor anything that was computed: a prompt context that the text
encoder makes differs in its last bits from processor to processor, so the encoder's files stand for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from intsr.files import sha256_from_path
from intsr.types import ModelSpec

WEIGHT_SUFFIXES = (".json", ".safetensors")
TEXT_FOLDERS, TEXT_SUFFIXES = ("text_encoder", "tokenizer"), (".json", ".safetensors", ".txt")


def file_facts(folder: Path, parts: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """`part/name:sha256` of the files directly in these folders below `folder`, in order."""
    return [
        f"{part}/{path.name}:{sha256_from_path(path)}"
        for part in parts
        for path in sorted((folder / part).glob("*"))
        if path.suffix in suffixes and path.is_file()
    ]


def context_fact(context: torch.Tensor) -> str:
    """Describe a context that a file held, (1, tokens, channels) float32."""
    return f"context {tuple(context.shape)}:{hashlib.sha256(context.numpy().tobytes()).hexdigest()}"


def model_digest(spec: ModelSpec, of_context: Sequence[str], of_weights: Sequence[str]) -> str:
    """of_context: `context_fact`, or `file_facts` of what makes it; nothing where the weights' file makes it."""
    facts = [
        spec.timestep,
        # A product of a thousand factors: not to the last bit, which libraries may round differently.
        f"{spec.alpha_bar:.12e}",
        float(spec.latent_scaling_factor),
        spec.upscale_factor,
        spec.resize_filter,
        spec.size_multiple_px,
    ]
    return hashlib.sha256(json.dumps([facts, list(of_context), list(of_weights)]).encode()).hexdigest()


def with_lora_digest(digest: str, lora: Path) -> str:
    """Return the digest of a model whose weights are merged with the file's."""
    return hashlib.sha256(f"{digest} lora:{sha256_from_path(lora)}".encode()).hexdigest()
