"""OSEDiff's LoRA, made here with PEFT itself as OSEDiff makes it, against what PEFT makes of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ldm
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from intsr.calib.models.convert import convert
from intsr.calib.models.families.published import read_lora
from intsr.calib.models.lora import merge_lora
from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.errors import ModelError

RANK_UNET, RANK_VAE = 4, 3
UNET_LAYERS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj")
VAE_LAYERS = ("conv", "to_k", "to_q", "to_v", "to_out.0")


def _modules(network: torch.nn.Module, layers: tuple[str, ...]) -> list[str]:
    names = [name.removesuffix(".weight") for name, _ in network.named_parameters()]
    names = [name for name in names if "bias" not in name and "norm" not in name]
    return [name for name in names if any(layer in name for layer in layers)]


def _adapt(network: Any, adapters: dict[str, list[str]], rank: int) -> None:
    """PEFT's adapters with random weights: B too, which training starts at 0."""
    for adapter, modules in adapters.items():
        config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=modules)
        network.add_adapter(config, adapter_name=adapter)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    network.set_adapter(list(adapters))


@pytest.fixture(scope="module")
def base() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    pair: tuple[UNet2DConditionModel, AutoencoderKL] = ldm.small_sd21(3)
    return pair


@pytest.fixture(scope="module")
def adapted(base: tuple[UNet2DConditionModel, AutoencoderKL]) -> tuple[UNet2DConditionModel, AutoencoderKL, dict]:
    """(UNet, VAE) with adapters, and what OSEDiff's save_model makes of them."""
    unet, vae = copy.deepcopy(base)
    torch.manual_seed(4)
    unet.conv_in.weight.data += 0.1 * torch.randn_like(unet.conv_in.weight)
    names = _modules(unet, UNET_LAYERS)
    lists = {
        "default_encoder": [name for name in names if "down_blocks" in name or "conv_in" in name],
        "default_decoder": [name for name in names if "up_blocks" in name or "conv_out" in name],
        "default_others": [name for name in names if "mid_block" in name],
    }
    encoder = [name for name in _modules(vae, VAE_LAYERS) if "encoder" in name] + ["quant_conv"]
    _adapt(unet, lists, RANK_UNET)
    _adapt(vae, {"default_encoder": encoder}, RANK_VAE)
    saved = {
        "vae_lora_encoder_modules": encoder,
        **{f"unet_lora_{kind}_modules": lists[f"default_{kind}"] for kind in ("encoder", "decoder", "others")},
        "rank_unet": RANK_UNET,
        "rank_vae": RANK_VAE,
        "state_dict_unet": {k: v for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: v for k, v in vae.state_dict().items() if "lora" in k},
    }
    return unet, vae, saved


@pytest.fixture(scope="module")
def folder(base: tuple[UNet2DConditionModel, AutoencoderKL], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    base[0].save_pretrained(path / "unet")
    base[1].save_pretrained(path / "vae")
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.save_pretrained(path / "scheduler")
    save_file({"context": torch.randn(1, 77, ldm.CONTEXT_CHANNELS)}, path / "context.safetensors")
    return path


@pytest.fixture(scope="module")
def pickled(adapted: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "osediff.pkl"
    torch.save(adapted[2], path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path, pickled: Path) -> SRModel:
    return load_model(str(folder), folder / "context.safetensors", pickled)


def test_weights_are_those_of_peft_merged(loaded: SRModel, adapted: tuple, base: tuple) -> None:
    for network, merged, before in zip((loaded.unet, loaded.vae), copy.deepcopy(adapted[:2]), base, strict=True):
        for module in merged.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        tensors = {name.replace(".base_layer", ""): tensor for name, tensor in merged.state_dict().items()}
        expected = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
        got, old = dict(network.state_dict()), before.state_dict()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert sum(not torch.equal(tensor, old[name]) for name, tensor in got.items()) > 20


def test_converted_it_is_the_same(pickled: Path, tmp_path: Path) -> None:
    written = convert(pickled, tmp_path / "osediff.safetensors")
    assert written.kind == "OSEDiff LoRA" and written.values == 6
    got, expected = read_lora(tmp_path / "osediff.safetensors"), read_lora(pickled)
    torch.testing.assert_close((got.updates, got.base), (expected.updates, expected.base), rtol=0, atol=0)


def test_it_counts_in_name_and_digest(loaded: SRModel, folder: Path, pickled: Path) -> None:
    plain = open_model(str(folder), folder / "context.safetensors")
    assert loaded.spec.name == f"{plain.spec.name}+osediff"
    assert loaded.digest != plain.digest
    assert open_model(str(folder), folder / "context.safetensors", pickled).digest == loaded.digest


def test_passionsrs_copy(adapted: tuple, pickled: Path, tmp_path: Path) -> None:
    """Its names for the tensors; the VAE decoder's adapter that it may have is left out, as PassionSR does."""
    saved = dict(adapted[2])
    saved["unet_state_dict"] = saved.pop("state_dict_unet")
    saved["vae_state_dict"] = saved.pop("state_dict_vae") | {
        "decoder.conv_in.lora_A.default_decoder.weight": torch.zeros(RANK_VAE, 4, 3, 3)
    }
    saved["vae_lora_decoder_modules"] = ["decoder.conv_in"]
    torch.save(saved, tmp_path / "copy.pkl")
    got, expected = read_lora(tmp_path / "copy.pkl"), read_lora(pickled)
    for part in ("unet", "vae"):
        assert got.updates[part].keys() == expected.updates[part].keys()
    assert got.base["unet"].keys() == {"conv_in.weight", "conv_in.bias"}


def test_deprecated_names_of_the_vaes_attention(adapted: tuple, pickled: Path, tmp_path: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        return re.sub(rf"(\.attentions\..*)\b({'|'.join(old)})\b", lambda found: found[1] + old[found[2]], name)

    saved = dict(adapted[2])
    saved["state_dict_vae"] = {rename(name): tensor for name, tensor in saved["state_dict_vae"].items()}
    saved["vae_lora_encoder_modules"] = [rename(name) for name in saved["vae_lora_encoder_modules"]]
    assert any("proj_attn" in name for name in saved["vae_lora_encoder_modules"])
    torch.save(saved, tmp_path / "old.pkl")
    assert read_lora(tmp_path / "old.pkl").updates["vae"].keys() == read_lora(pickled).updates["vae"].keys()


ONE = "down_blocks.0.resnets.0.conv1"


def _without(key: str) -> Callable[[dict], dict]:
    return lambda saved: {name: value for name, value in saved.items() if name != key}


def _in_unet(**tensors: torch.Tensor | None) -> Callable[[dict], dict]:
    def change(saved: dict) -> dict:
        state = saved["state_dict_unet"] | {name.replace("__", "."): t for name, t in tensors.items()}
        return saved | {"state_dict_unet": {name: t for name, t in state.items() if t is not None}}

    return change


A, B = (f"{ONE}.lora_{side}.default_encoder.weight".replace(".", "__") for side in "AB")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved | {"rank_unet": 8}, ["lora_A (4,", "expected rank 8, as rank_unet says"]),
        (_in_unet(**{A: torch.zeros(2, 64, 3, 3)}), [ONE, "(2, 64, 3, 3)", "rank 4"]),
        (_in_unet(**{B: None}), [f"unet.{ONE}: only lora_A of default_encoder"]),
        (_in_unet(**{A: None, B: None}), ["1 modules listed without weights", ONE]),
        (_in_unet(x__lora_A__default_encoder__weight=torch.zeros(4, 2)), ["only lora_A"]),
        (_in_unet(mid_block__resnets__0__norm1__weight=torch.zeros(4)), ["mid_block.resnets.0.norm1.weight"]),
        (_in_unet(x__lora_A__pixel__weight=torch.zeros(4, 2)), ["x.lora_A.pixel.weight", "OSEDiff's layout"]),
        (lambda saved: saved | {"embeddings": torch.zeros(3)}, ["1 tensors", "embeddings"]),
        (_without("rank_vae"), ["its vae lacks rank", "OSEDiff's LoRA"]),
        (_without("unet_lora_others_modules"), ["its unet lacks rank, module lists or weights"]),
        (lambda saved: {"state_dict": saved["state_dict_unet"]}, ["no LoRA of a known family"]),
        (lambda saved: saved | {"lora_alpha": 16}, ["unknown keys lora_alpha", "W + (8 / r) B A is computed"]),
        (lambda saved: saved | {"config": {"alpha_pattern": {ONE: 4}}}, ["unknown keys config.alpha_pattern"]),
        (lambda saved: saved | {"vae_lora_decoder_modules": []}, ["unknown keys vae_lora_decoder_modules"]),
        (lambda saved: saved | {"rank_unet": True}, ["its unet lacks rank"]),
    ],
)
def test_another_layout_is_refused(
    adapted: tuple, tmp_path: Path, change: Callable[[dict], dict], words: list[str]
) -> None:
    torch.save(change(adapted[2]), tmp_path / "other.pkl")
    with pytest.raises(ModelError) as error:
        read_lora(tmp_path / "other.pkl")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_conv_in_is_said(
    adapted: tuple, folder: Path, pickled: Path, tmp_path: Path, intsr: Callable[..., tuple[int, str, str]]
) -> None:
    names = [name for name in adapted[2]["state_dict_unet"] if "base_layer" in name]
    lacking = _in_unet(**{name.replace(".", "__"): None for name in names})(adapted[2])
    torch.save(lacking, tmp_path / "lacking.pkl")
    context = folder / "context.safetensors"
    assert open_model(str(folder), context, pickled).notes == ()
    options = ("--context", context, "--lora", tmp_path / "lacking.pkl", "--tile", 16)
    code, _, err = intsr("export", folder, *options, "-o", tmp_path / "onnx")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == 1, err
    assert "lacking.pkl: no conv_in.weight and no conv_in.bias, which OSEDiff's files have" in notes[0]


@pytest.mark.parametrize(
    ("name", "other", "word"),
    [
        ("conv_in.weight", None, "no such weight"),
        ("conv_in.weight", torch.zeros(32, 4, 3, 3), "(32, 4, 3, 3)"),
        (f"{ONE}.weight", torch.zeros(64, 32, 3, 3), f"unet.{ONE}.weight of shape (64, 64, 3, 3)"),
    ],
)
def test_a_lora_of_another_model_is_refused(
    pickled: Path, base: tuple, name: str, other: torch.Tensor | None, word: str
) -> None:
    weights = {key: tensor for key, tensor in base[0].state_dict().items() if key != name}
    weights |= {} if other is None else {name: other}
    with pytest.raises(ModelError, match="the base model that it was trained on") as error:
        merge_lora(read_lora(pickled), "unet", weights)
    assert word in str(error.value)
