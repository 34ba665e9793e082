"""The empty prompt's context from a folder's text encoder: in float32, from the files that are there, in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import edit_json
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging

from intsr.calib.models.open import open_model
from intsr.calib.models.prompt import context_from_folder
from intsr.errors import ModelError, UsageError
from intsr.types import WeightOptions

START, END, TOKENS = 298, 299, 77


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """text_encoder/ in fp16, as fp16 repositories have it, and a tokenizer."""
    torch.manual_seed(0)
    (tmp_path / "tokenizer").mkdir()
    # Two words of one letter, so that they are tokens of their own.
    names = {5: "a</w>", 7: "b</w>"}
    words = {names.get(i, f"t{i}"): i for i in range(START)} | {"<|startoftext|>": START, "<|endoftext|>": END}
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


@pytest.mark.parametrize(("prompt", "ids"), [("a b", [5, 7]), ("", []), ("a " * 75, [5] * 75)])
def test_a_prompt_is_what_the_encoder_makes_of_its_tokens(folder: Path, prompt: str, ids: list[int]) -> None:
    tokens = torch.tensor([[START, *ids] + [END] * (TOKENS - 1 - len(ids))])
    with torch.no_grad():
        wanted = encoder().half().float()(tokens)[0]
    torch.testing.assert_close(context_from_folder(folder, prompt), wanted, rtol=1e-5, atol=1e-5)


def test_a_prompt_that_is_too_long_is_not_cut_off(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"--prompt: 76 tokens; expected at most 75; shorten it"):
        context_from_folder(folder, "a " * 76)


def test_a_prompt_in_a_model(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    with pytest.raises(ModelError, match=r"nothing that makes a context of 'a'; expected text_encoder/"):
        open_model(str(model), prompt="a")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / part, model / part)
    of_file, prompted, empty = (open_model(str(model), prompt=prompt) for prompt in (None, "a", ""))
    assert (of_file.spec.prompt, prompted.spec.prompt, empty.spec.prompt) == (None, "a", "")
    assert len({source.digest for source in (of_file, prompted, empty)}) == 3
    torch.testing.assert_close(prompted.context, context_from_folder(folder, "a"))
    with pytest.raises(UsageError, match="--prompt: together with --context"):
        WeightOptions(context=model / "context.safetensors", prompt="a")


def test_guidance_is_two_networks(intsr: Callable[..., tuple[int, str, str]], tiny_folder: Path) -> None:
    for option in ("--negative-prompt", "--guidance-scale"):
        code, _, err = intsr("compile", tiny_folder, "--bits", "fp", option, "5", "-o", "x.engine")
        assert code == 2 and f"{option}: two networks at each step" in err, err


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


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"vocab.json": None, "merges.txt": None}, ["words; expected 300, as the text encoder has"]),
        ({"vocab.json": '{"a</w>": 0}'}, ["words; expected 300"]),
        ({"vocab.json": json.dumps({f"t{i}": i for i in range(301)})}, ["words; expected 300"]),
        ({"vocab.json": "{"}, ["EOF while parsing"]),
        ({"merges.txt": "#version: 0.2\na b c\n"}, ["Merges text file invalid"]),
        ({"merges.txt": None}, ["vocab"]),
    ],
)
def test_a_tokenizer_that_is_not_whole(folder: Path, files: dict[str, str | None], words: list[str]) -> None:
    """Without its vocabulary transformers makes one of a few words, and another context without a word."""
    for name, text in files.items():
        path = folder / "tokenizer" / name
        path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ModelError) as error:
        context_from_folder(folder, "a")
    text = str(error.value)
    assert text.startswith(f"{folder / 'tokenizer'}: ") and "\n" not in text, text
    assert all(word in text for word in words), text


def test_a_tokenizer_that_does_not_say_its_length(folder: Path) -> None:
    """It is the text encoder's then, as in copies that were saved without it."""
    wanted = context_from_folder(folder, "a b")
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.testing.assert_close(context_from_folder(folder, "a b"), wanted, rtol=0, atol=0)


def test_a_text_encoder_of_other_shapes_is_told(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_json(folder / "text_encoder" / "config.json", hidden_size=48)
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"text_encoder: 64 tensors of other shapes \(embeddings\..*\(77, 24\)"):
        context_from_folder(folder)
    assert not capfd.readouterr().err
