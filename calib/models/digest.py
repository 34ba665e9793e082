"""What a model's digest is made of: the hashes of its files, and of a context that a file held."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from intsr.files import sha256_from_path

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
