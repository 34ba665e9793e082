"""Weights in several files, under other names, and what lies where weights should: loaded, or told as what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.errors import ModelError

WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4665...\nsize 3463726504\n"


def divide(folder: Path, part: str = "unet") -> Path:
    """By diffusers itself; returns the index."""
    import diffusers

    network = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    network.from_pretrained(folder / part).save_pretrained(folder / part, max_shard_size="400KB")
    (folder / part / WHOLE).unlink(missing_ok=True)
    assert len(list((folder / part).glob("*-of-*"))) > 1
    return folder / part / INDEX


@pytest.mark.parametrize(("part", "variant"), [("unet", ""), ("vae", ".fp16")])
def test_several_files_with_an_index(folder: Path, tiny_model: SRModel, part: str, variant: str) -> None:
    index = divide(folder, part)
    index.rename(index.with_name(f"{WHOLE}.index{variant}.json"))
    got = getattr(load_model(str(folder)), part).state_dict()
    expected = getattr(tiny_model, part).state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_each_of_them_counts_in_the_digest(folder: Path) -> None:
    divide(folder)
    before = open_model(str(folder)).digest
    shard = sorted((folder / "unet").glob("*-of-*"))[-1]
    tensors = load_file(shard)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, shard)
    assert open_model(str(folder)).digest != before


def test_the_plan_of_a_build_counts_all_of_them(folder: Path, intsr: Callable[..., tuple[int, str, str]]) -> None:
    def peak_bytes() -> int:
        code, out, err = intsr("compile", folder, "--bits", "fp", "--tile", 16, "--dry-run", "--json")
        assert code == 0, err
        return int(json.loads(out)["peak_bytes"])

    before = peak_bytes()
    divide(folder)
    assert abs(peak_bytes() - before) < 100_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: {**names, "extra": min(names.values())}, "extra and the like: not both in the index and"),
        (lambda names: dict(list(names.items())[1:]), "and the like: not both in the index and"),
        (lambda names: dict.fromkeys(names, "gone.safetensors"), "gone.safetensors: no such file"),
        (lambda names: dict.fromkeys(names, "../other.safetensors"), "'../other.safetensors' for "),
        (lambda names: dict.fromkeys(names, 3), "3 for "),
        (lambda names: [], "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit(folder: Path, change: Callable[[dict[str, str]], object], words: str) -> None:
    index = divide(folder)
    index.write_text(json.dumps({"weight_map": change(json.loads(index.read_text())["weight_map"])}))
    with pytest.raises(ModelError) as error:
        load_model(str(folder))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diffusion_pytorch_model.bin", "no weights but diffusion_pytorch_model.bin (a pickle)"),
        ("diffusion_pytorch_model.non_ema.safetensors", "(the variant non_ema)"),
        ("model.safetensors", "model.safetensors (another name)"),
    ],
)
def test_other_names_are_told_with_the_command_that_converts(
    folder: Path, tiny_model: SRModel, intsr: Callable[..., tuple[int, str, str]], name: str, words: str
) -> None:
    path = folder / "unet" / WHOLE
    other = path.with_name(name)
    torch.save(load_file(path), other) if name.endswith(".bin") else shutil.copyfile(path, other)
    path.unlink()
    with pytest.raises(ModelError) as error:
        open_model(str(folder))
    message = str(error.value)
    assert words in message and "\n" not in message
    command = message.rpartition("; ")[2].split()
    assert command == ["intsr", "convert", str(other), "-o", str(path)]
    assert intsr(*command[1:])[0] == 0
    got, expected = load_model(str(folder)).unet.state_dict(), tiny_model.unet.state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_parts_without_their_index(folder: Path) -> None:
    divide(folder).unlink()
    with pytest.raises(ModelError, match=r"one of several files, without their index.*get the index"):
        open_model(str(folder))


STAND_INS = [
    (LFS.encode(), "a git-lfs pointer, which only names the weights; expected the weights; fetch the file itself"),
    (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page, not weights"),
    (b"\xef\xbb\xbf  <html lang='en'>", "a web page, not weights"),
    (b"Entry not found", "a text (Entry not found...), not weights"),
    (b'{"error":"Repository not found"}', "a text ("),
]


@pytest.mark.parametrize(("content", "words"), STAND_INS)
def test_what_stands_in_a_files_place_is_told(folder: Path, content: bytes, words: str) -> None:
    path, given = folder / "unet" / WHOLE, folder.parent / "given.safetensors"
    for file, opened in (
        (given, lambda: open_model(str(given))),
        (given, lambda: open_model(str(folder), given)),
        (given, lambda: open_model(str(folder), lora=given)),
        (path, lambda: load_model(str(folder))),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError) as error:
            opened()
        assert str(error.value).startswith(f"{file}: ") and words in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_where_a_file_belongs(folder: Path) -> None:
    with pytest.raises(ModelError, match="a folder; expected a safetensors file") as error:
        open_model(str(folder), folder)
    assert str(error.value).endswith(f"give {folder / 'context.safetensors'}")
    with pytest.raises(ModelError, match=r"unet: a folder; expected a safetensors file with the tensor `context`$"):
        open_model(str(folder), folder / "unet")
    with pytest.raises(ModelError, match="a folder; expected a file with"):
        open_model(str(folder), lora=folder)
