"""Every listed bad model input through the real entry point: one line on stderr, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

Command = Callable[..., tuple[int, str, str]]


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    (error,) = (line for line in err.splitlines() if line.startswith("intsr: error: "))
    assert (code, out) == (2, "") and all(word in error for word in words), err


def lora_of_rank_2(path: Path, stated: int) -> Path:
    state = {
        "conv_in.lora_A.default_encoder.weight": torch.zeros(2, 4, 3, 3),
        "conv_in.lora_B.default_encoder.weight": torch.zeros(32, 2, 1, 1),
    }
    lists = {f"unet_lora_{kind}_modules": [] for kind in ("decoder", "others")} | {"vae_lora_encoder_modules": []}
    content = {"rank_unet": stated, "rank_vae": 2, "unet_lora_encoder_modules": ["conv_in"], **lists}
    vae = {"quant_conv.lora_A.default_encoder.weight": torch.zeros(2, 8, 1, 1)}
    torch.save(content | {"state_dict_unet": state, "state_dict_vae": vae}, path)
    return path


def bad_arguments(kind: str, folder: Path) -> tuple[object, ...]:
    """What is given to `intsr export` for a model and its options."""
    place = folder.parent
    if kind == "a LoRA of another rank":
        return folder, "--lora", lora_of_rank_2(place / "lora.pkl", 4)
    if kind == "a LoRA that runs code":
        torch.save({"rank_unet": RunsCode(place / "it-ran")}, place / "lora.pkl")
        return folder, "--lora", place / "lora.pkl"
    if kind == "a checkpoint that runs code":
        torch.save({"state_dict": RunsCode(place / "it-ran")}, place / "sd.ckpt")
        return (place / "sd.ckpt",)
    if kind == "an SDXL checkpoint":
        save_file({"conditioner.embedders.1.model.positional_embedding": torch.zeros(1)}, place / "xl.safetensors")
        return (place / "xl.safetensors",)
    if kind == "an SDXL folder":
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "addition_embed_type": "text_time"}))
        return (folder,)
    if kind == "a context of another width":
        save_file({"context": torch.zeros(1, 7, 8)}, place / "narrow.safetensors")
        return folder, "--context", place / "narrow.safetensors"
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if kind == "truncated weights":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "weights with missing and unknown names":
        save_file({"surplus": torch.zeros(1)}, path)
    return (folder,)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a LoRA of another rank", ["lora.pkl", "unet.conv_in: lora_A (2, 4, 3, 3)", "rank 4"]),
        ("a LoRA that runs code", ["lora.pkl", "it would run code (posix.system)"]),
        ("a checkpoint that runs code", ["sd.ckpt", "it would run code (posix.system)"]),
        ("an SDXL checkpoint", ["xl.safetensors: an SDXL checkpoint; expected SD 2.1"]),
        ("an SDXL folder", ["an SDXL UNet"]),
        ("a context of another width", ["narrow.safetensors: context of width 8; expected 24"]),
        ("truncated weights", ["diffusion_pytorch_model.safetensors"]),
        ("weights with missing and unknown names", ["missing (conv_in.bias, ", "1 unknown (surplus)"]),
    ],
)
def test_bad_models(intsr: Command, folder: Path, kind: str, words: list[str]) -> None:
    arguments = bad_arguments(kind, folder)
    before = sorted(folder.parent.rglob("*"))
    assert_one_line(intsr("export", *arguments, "--tile", 16, "-o", folder.parent / "onnx"), *words)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("command", ["calibrate", "compile", "compare", "info"])
def test_every_command_finds_models_in_the_same_way(intsr: Command, tmp_path: Path, command: str) -> None:
    save_file({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, tmp_path / "xl.safetensors")
    (tmp_path / "lr").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "lr" / "a.png")
    model, lr, output = tmp_path / "xl.safetensors", tmp_path / "lr", ("-o", tmp_path / "out")
    pictures = ("--images", lr)
    arguments: dict[str, tuple[object, ...]] = {
        "calibrate": (model, *pictures, *output),
        "compile": (model, "--bits", "fp", *output),
        "compare": (model, "--methods", "maxmin", "--calibration", lr, *pictures, "--hr", lr),
        "info": (model,),
    }
    assert_one_line(intsr(command, *arguments[command]), "an SDXL checkpoint")


@pytest.mark.parametrize("command", ["export", "compile", "convert", "synth"])
def test_a_full_disk_is_found_before_writing(
    intsr: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = folder.parent / "out"
    torch.save({"a": torch.ones(2)}, folder.parent / "in.pkl")
    arguments: dict[str, tuple[object, ...]] = {
        "export": (folder, "--tile", 16, "-o", out),
        "compile": (folder, "--bits", "fp", "--tile", 16, "-o", out / "x.engine"),
        "convert": (folder.parent / "in.pkl", "-o", out / "x.safetensors"),
        "synth": ("--arch", "sd21", "-o", out),
    }
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert_one_line(intsr(command, *arguments[command]), "GB free on its disk; expected about")
    assert not list(out.rglob("*"))


def test_lora_is_an_option_of_models_not_of_exports(intsr: Command, folder: Path) -> None:
    (folder / "export.json").write_text("{}")
    assert_one_line(intsr("compile", folder, "--lora", "x.pkl", "-o", folder / "x.engine"), "--lora", "export folder")
