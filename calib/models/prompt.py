"""The constant prompt context: from a file, or the empty prompt through the text encoder that a model brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from intsr.calib.models.families.architecture import PROMPT_TOKENS
from intsr.calib.models.families.sd21_ldm import TEXT_PREFIX
from intsr.calib.models.tensor_files import as_model_error, check_is_data
from intsr.calib.models.weights import no_weights
from intsr.errors import ModelError

# The first that is there.
TEXT_WEIGHT_FILES = ("model.safetensors", "model.fp16.safetensors")
CONTEXT_NAME = "context.safetensors"
CONTEXT_FIX = "give one with --context FILE.safetensors"
OPEN_CLIP_PREFIX = f"{TEXT_PREFIX}model."
# SD 2.x takes what the last block but one of OpenCLIP's 24 gives, and its final norm.
OPEN_CLIP_LAYERS = 23
OPEN_CLIP_HEAD_CHANNELS = 64
# What transformers calls CLIPTextModel has no projection behind it.
_UNUSED = ("text_projection.weight", "logit_scale")


def read_context(path: Path) -> torch.Tensor:
    """The tensor `context` of a safetensors file, (1, tokens, channels) float32. Raises ModelError."""
    if path.is_dir():
        fix = f"give {path / CONTEXT_NAME}" if (path / CONTEXT_NAME).is_file() else ""
        raise ModelError(path, "a folder", "a safetensors file with the tensor `context`", fix)
    check_is_data(path)
    with as_model_error(path):
        tensor = load_file(path)["context"].float()
    if tensor.ndim != 3 or tensor.shape[0] != 1 or not tensor.numel() or not torch.isfinite(tensor).all():
        raise ModelError(
            path, f"context of shape {tuple(tensor.shape)}", "finite values, shape (1, tokens, channels)"
        )
    return tensor


def context_from_folder(folder: Path, prompt: str = "") -> torch.Tensor:
    """The prompt, as a rule the empty one, through the folder's own CLIP text encoder: (1, tokens, channels) float32.

    Raises ModelError: no encoder or tokenizer, or a prompt of more tokens than they take.
    """
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        got = f"nothing that makes a context of {prompt!r}" if prompt else "no prompt context"
        raise ModelError(folder, got, "text_encoder/ and tokenizer/", CONTEXT_FIX)
    with as_model_error(folder / "text_encoder"), _in_silence():
        encoder = _text_encoder(folder / "text_encoder")
        tokenizer = _tokenizer(folder / "tokenizer", encoder.config.vocab_size)
        # A tokenizer that was saved without its length has an endless one.
        most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(prompt, padding="max_length", max_length=most, return_tensors="pt")
        count = tokens.input_ids.shape[1]
        # Models' own code cuts it off.
        if count > most:
            raise ModelError("--prompt", f"{count - 2} tokens", f"at most {most - 2}", "shorten it")
        with torch.no_grad():
            context: torch.Tensor = encoder(tokens.input_ids)[0]
    return context


def _tokenizer(folder: Path, words: int) -> Any:
    """words: how many the text encoder knows. Raises ModelError."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # What reads the vocabulary raises plain ones.
        raise ModelError(folder, str(error)[:400], "CLIP's tokenizer") from error
    # Where no file has a vocabulary, it has made up one of a few words.
    if len(tokenizer) != words:
        fix = "get all of its files: vocab.json and merges.txt, or tokenizer.json"
        raise ModelError(folder, f"{len(tokenizer)} words", f"{words}, as the text encoder has", fix)
    return tokenizer


def _text_encoder(folder: Path) -> Any:
    """In float32 whatever its file holds: fp16 arithmetic would move the context. Raises ModelError."""
    from transformers import CLIPTextModel

    whole, half = (folder / name for name in TEXT_WEIGHT_FILES)
    for path in (whole, half):
        if path.is_file():
            check_is_data(path)
    if not list(folder.glob("model*.safetensors*")):
        raise no_weights(folder, TEXT_WEIGHT_FILES)
    encoder, info = CLIPTextModel.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        variant="fp16" if half.is_file() and not whole.is_file() else None,
        dtype=torch.float32,
        output_loading_info=True,
        # Its own error names none of them.
        ignore_mismatched_sizes=True,
    )
    # Filled in at random otherwise.
    other = sorted(info["mismatched_keys"])
    if other:
        name, got, expected = other[0]
        raise ModelError(
            folder,
            f"{len(other)} tensors of other shapes ({name} {tuple(got)}, ...)",
            f"{tuple(expected)}, as config.json says",
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(folder, f"{len(missing)} tensors missing ({missing[0]}, ...)", "a whole CLIP text encoder")
    return encoder.eval()


@contextmanager
def _in_silence() -> Iterator[None]:
    """transformers draws bars and tables on stderr, asked or not; what matters of them is an error here."""
    from transformers.utils import logging

    drawn, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if drawn:
            logging.enable_progress_bar()


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
