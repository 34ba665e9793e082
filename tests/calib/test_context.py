"""The empty prompt's context from a folder's text encoder: in float32, from the files that are there, in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging

from intsr.calib.models.prompt import context_from_folder
from intsr.errors import ModelError

START, END, TOKENS = 298, 299, 77


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """text_encoder/ in fp16, as fp16 repositories have it, and a tokenizer."""
    torch.manual_seed(0)
    (tmp_path / "tokenizer").mkdir()
    words = {f"t{i}": i for i in range(START)} | {"<|startoftext|>": START, "<|endoftext|>": END}
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder().half().save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def encoder() -> CLIPTextModel:
    sizes = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 4}
    ends = {"max_position_embeddings": TOKENS, "bos_token_id": START, "eos_token_id": END}
    config = CLIPTextConfig(num_attention_heads=2, **sizes, **ends)
    generator = torch.Generator().manual_seed(4)
    model = CLIPTextModel(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def expected() -> torch.Tensor:
    """fp16 weights in float32 arithmetic: no file, no tokenizer."""
    model = encoder().half().float()
    with torch.no_grad():
        context: torch.Tensor = model(torch.tensor([[START] + [END] * (TOKENS - 1)]))[0]
    return context


def test_weights_of_another_name_are_told(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ModelError) as error:
        context_from_folder(folder)
    assert f"intsr convert {path.with_name('pytorch_model.bin')} -o {path}" in str(error.value)
    path.with_name("pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"text_encoder: no weights; expected model\.safetensors or model\.fp16"):
        context_from_folder(folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"model\.safetensors: a git-lfs pointer"):
        context_from_folder(folder)


def test_fp16_weights_are_computed_in_float32(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("model.fp16.safetensors"))
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    context = context_from_folder(folder)
    assert context.dtype == torch.float32
    torch.testing.assert_close(context, expected(), rtol=1e-5, atol=1e-5)
    assert "Loading" not in capfd.readouterr().err
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


def test_whole_weights_before_half_ones(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    other = {name: tensor * 0 for name, tensor in load_file(path).items()}
    save_file(other, path.with_name("model.fp16.safetensors"), metadata={"format": "pt"})
    torch.testing.assert_close(context_from_folder(folder), expected(), rtol=1e-5, atol=1e-5)


def test_nothing_is_filled_in(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    left = {name: tensor for name, tensor in load_file(path).items() if "layers.2.mlp.fc1.weight" not in name}
    save_file(left, path, metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"1 tensors missing .*layers\.2\.mlp\.fc1\.weight") as error:
        context_from_folder(folder)
    assert "\n" not in str(error.value) and "MISSING" not in capfd.readouterr().err
