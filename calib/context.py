"""The constant prompt context: from a file, or the empty prompt through the text encoder that a model brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from intsr.calib.architecture import PROMPT_TOKENS
from intsr.calib.checkpoint import as_model_error
from intsr.calib.ldm import TEXT_PREFIX
from intsr.errors import ModelError

CONTEXT_FIX = "give one with --context FILE.safetensors"
OPEN_CLIP_PREFIX = f"{TEXT_PREFIX}model."
# SD 2.x takes what the last block but one of OpenCLIP's 24 gives, and its final norm.
OPEN_CLIP_LAYERS = 23
OPEN_CLIP_HEAD_CHANNELS = 64
# What transformers calls CLIPTextModel has no projection behind it.
_UNUSED = ("text_projection.weight", "logit_scale")


def read_context(path: Path) -> torch.Tensor:
    """The tensor `context` of a safetensors file, (1, tokens, channels) float32. Raises ModelError."""
    with as_model_error(path):
        tensor = load_file(path)["context"].float()
    if tensor.ndim != 3 or tensor.shape[0] != 1 or not torch.isfinite(tensor).all():
        raise ModelError(
            path, f"context of shape {tuple(tensor.shape)}", "finite values, shape (1, tokens, channels)"
        )
    return tensor


def context_from_folder(folder: Path) -> torch.Tensor:
    """The empty prompt through the folder's own CLIP text encoder, as OSEDiff's kin do."""
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise ModelError(folder, "no prompt context", "text_encoder/ and tokenizer/", CONTEXT_FIX)
    from transformers import CLIPTextModel, CLIPTokenizer

    with as_model_error(folder / "text_encoder"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
        tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        with torch.no_grad():
            return encoder(tokens.input_ids)[0].float()


def context_from_ldm(tensors: Mapping[str, torch.Tensor], path: Path, layers: int = OPEN_CLIP_LAYERS) -> torch.Tensor:
    """The empty prompt through the OpenCLIP text encoder of an ldm checkpoint, (1, 77, channels) float32.

    No tokenizer is needed: it is the start token, the end token, and zeros. Raises ModelError where there is no such
    encoder in the file, or not a whole one.
    """
    own = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(OPEN_CLIP_PREFIX)}
    embedding = own.get(f"{OPEN_CLIP_PREFIX}token_embedding.weight")
    if embedding is None:
        raise ModelError(path, "no prompt context, and no OpenCLIP text encoder in it", fix=CONTEXT_FIX)
    own = {name: tensor for name, tensor in own.items() if _layer_of(name) < layers}
    tokens = torch.zeros(1, PROMPT_TOKENS, dtype=torch.int64)
    tokens[0, :2] = torch.tensor([len(embedding) - 2, len(embedding) - 1])
    with as_model_error(path), torch.no_grad():
        encoder = _open_clip_encoder(own, embedding.shape, layers)
        context: torch.Tensor = encoder(tokens)[0]
    return context


def _layer_of(name: str) -> int:
    inner = name.removeprefix(f"{OPEN_CLIP_PREFIX}transformer.resblocks.")
    return int(inner.partition(".")[0]) if inner != name else -1


def _open_clip_encoder(tensors: dict[str, torch.Tensor], embedding: tuple[int, ...], layers: int) -> Any:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, width = embedding
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // OPEN_CLIP_HEAD_CHANNELS),
        max_position_embeddings=PROMPT_TOKENS,
        hidden_act="gelu",
        projection_dim=width,
    )
    encoder = CLIPTextModel(config)
    converted = convert_open_clip_checkpoint(encoder, tensors, prefix=OPEN_CLIP_PREFIX)
    # transformers has dropped the outer name that diffusers' converter still writes.
    own = {name.removeprefix("text_model."): t for name, t in converted.items() if name not in _UNUSED}
    encoder.load_state_dict(own, strict=True)
    return encoder.eval()
