"""What is no family's file, or not a whole one: one line each, that says whose file it looks like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

from intsr.calib.models.families.published import FAMILIES, read_lora
from intsr.calib.models.open import load_model
from intsr.errors import ModelError

ONE = "mid_block.resnets.0.conv1"
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def files(base: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("files")
    paths = {family: place / FAMILIES[family].published for family in families.NAMES}
    for family, path in paths.items():
        families.publish(family, base.unet, base.vae, path)
    return paths


def assert_refused(base: SimpleNamespace, lora: Path, *words: str) -> None:
    with pytest.raises(ModelError) as error:
        load_model(str(base.folder), base.context, lora)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def without(*endings: str) -> Change:
    return lambda saved: {key: value for key, value in saved.items() if not key.endswith(endings)}


def plus(**tensors: torch.Tensor) -> Change:
    return lambda saved: saved | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def in_unet(change: Change) -> Change:
    return lambda saved: saved | {"state_dict_unet": change(saved["state_dict_unet"])}


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("hypir", without(f"{ONE}.lora_B.default.weight"), [f"unet.{ONE}: only lora_A of default"]),
        ("hypir", without(f"{ONE}.lora_{{}}.default.weight".format("A"), f"{ONE}.lora_B.default.weight"),
         ["unet: 1 modules missing", ONE, "HYPIR's"]),
        ("hypir", plus(conv_in__lora_A__default__weight=torch.zeros(3, 4, 3, 3),
                       conv_in__lora_B__default__weight=torch.zeros(32, 3, 1, 1)),
         ["unet: 1 modules too much: conv_in"]),
        ("hypir", plus(conv_norm_out__weight=torch.zeros(32)), ["unet: conv_norm_out.weight", "HYPIR's LoRA"]),
        ("hypir", plus(**{f"{ONE.replace('.', '__')}__lora_A__default__weight": torch.zeros(2, 64, 3, 3)}),
         [ONE, "(2, 64, 3, 3)", "rank 3, as in its first module"]),
        ("hypir", plus(**{f"{ONE.replace('.', '__')}__lora_A__default__weight": torch.tensor(1.0)}),
         [ONE, "lora_A (), lora_B", "rank 3, as in its first module"]),
        ("hypir", plus(**{f"{ONE.replace('.', '__')}__lora_B__default__weight": torch.zeros(64, 3, 3, 3)}),
         [ONE, "lora_B (64, 3, 3, 3)", "rank 3, as in its first module"]),
        ("hypir", plus(x__lora_A__other__weight=torch.zeros(3, 2)), ["unet: x.lora_A.other.weight"]),
        ("pisasr", without("lora_rank_unet_sem"), ["keys missing or unknown: lora_rank_unet_sem"]),
        ("pisasr", plus(lora_alpha=torch.zeros(1)), ["1 tensors that PiSA-SR has not: lora_alpha"]),
        ("pisasr", lambda saved: saved | {"lora_alpha": 16}, ["keys missing or unknown: lora_alpha"]),
        ("pisasr", lambda saved: saved | {"lora_rank_unet_pix": 8}, ["rank 8, as lora_rank_unet_pix says"]),
        ("pisasr", lambda saved: saved | {"lora_rank_unet_pix": True}, ["ranks [True, 3]"]),
        ("pisasr", lambda saved: saved | {"unet_lora_others_modules_sem": []}, ["with weights but not listed"]),
        ("pisasr", in_unet(without("default_others_sem.weight")), ["modules listed without weights", "mid_block"]),
        ("pisasr", in_unet(plus(conv_in__weight=torch.zeros(1))), ["has not: state_dict_unet.conv_in.weight"]),
    ],
)  # fmt: skip
def test_a_key_too_few_or_too_many(
    base: SimpleNamespace, files: dict[str, Path], tmp_path: Path, family: str, change: Change, words: list[str]
) -> None:
    path = tmp_path / "changed.pth"
    torch.save(change(torch.load(files[family], weights_only=True)), path)
    assert_refused(base, path, "changed.pth", *words)


def test_numbers_that_are_none_are_not_the_bases(
    base: SimpleNamespace, files: dict[str, Path], tmp_path: Path
) -> None:
    saved = torch.load(files["hypir"], weights_only=True)
    saved[f"{ONE}.lora_A.default.weight"][0] = float("nan")
    torch.save(saved, tmp_path / "broken.pth")
    assert_refused(base, tmp_path / "broken.pth", "broken.pth", f"NaN or infinity in {ONE}.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, ["adapter_config.json: use_dora True; expected plain LoRA"]),
        ({"bias": "lora_only"}, ["bias 'lora_only'"]),
        ({"lora_bias": True}, ["lora_bias True"]),
        ({"modules_to_save": ["conv_in"]}, ["modules_to_save ['conv_in']"]),
        ({"exclude_modules": ["conv1"]}, ["exclude_modules"]),
        ({"layers_to_transform": [1]}, ["layers_to_transform"]),
        ({"something_new": 3}, ["something_new 3"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights 'pissa'; expected a start that leaves the base"]),
        ({"peft_type": "LOHA"}, ["peft_type 'LOHA'; expected LORA"]),
        ({"r": 8}, ["lora_A (3,", "expected rank 8, as", "adapter_config.json says"]),
        ({"rank_pattern": {"conv1": 7}}, ["expected rank 7"]),
        ({"rank_pattern": {"conv1": 0}}, ["rank_pattern {'conv1': 0}; expected numbers above 0"]),
        ({"rank_pattern": {"(": 3}}, ["rank_pattern '(' (missing )", "a regular expression"]),
        ({"alpha_pattern": {"conv1": None}}, ["alpha_pattern {'conv1': None}; expected numbers above 0"]),
        ({"r": True}, ["r True"]),
        ({"lora_alpha": None}, ["lora_alpha None"]),
        ({"target_modules": "["}, ["target_modules '['", "a regular expression"]),
        ({"target_modules": None}, ["target_modules None"]),
        ({"target_modules": [1]}, ["target_modules [1]"]),
        ({"target_modules": ["conv1"]}, ["modules too much", "OMGSR-S's"]),
        ({"target_modules": [*families.OMGSR_MODULES, "proj_in"]}, ["modules missing", "proj_in"]),
    ],
)
def test_peft_settings_that_change_the_result(
    base: SimpleNamespace, files: dict[str, Path], tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    folder = Path(shutil.copytree(files["omgsr"], tmp_path / "adapters"))
    config = folder / "unet_lora_adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert_refused(base, folder, *words)


def test_adapters_that_are_not_both_there(base: SimpleNamespace, files: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(files["omgsr"], tmp_path / "adapters"))
    one = folder / "unet_lora_adapter"
    assert_refused(base, one, "one PEFT adapter", f"give {folder}")
    assert_refused(base, one / "adapter_model.safetensors", "one PEFT adapter: OMGSR-S has two")
    weights = folder / "vae_encoder_lora_adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name.removeprefix("base_model."): tensor for name, tensor in tensors.items()}, weights)
    assert_refused(base, folder, "vae: ", "expected base_model.model.MODULE")
    weights.write_bytes(weights.read_bytes()[:-50])
    assert_refused(base, folder, "vae_encoder_lora_adapter/adapter_model.safetensors")
    weights.unlink()
    assert_refused(base, folder, "adapter_model.safetensors: no such file")
    shutil.rmtree(weights.parent)
    assert_refused(base, folder, "adapters unet_lora_adapter; expected OMGSR-S's folder")


STRANGERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "s3diff": (
        {
            "rank_unet": 32,
            "rank_vae": 16,
            "unet_lora_target_modules": [],
            "w": torch.zeros(64),
            "state_dict_vae_de_mlp": {"0.weight": torch.zeros(2)},
        },
        ["S3Diff's LoRA", "computed for each picture"],
    ),
    "invsr": ({"state_dict": {"encoder.conv_in.weight": torch.zeros(2)}}, ["InvSR's noise predictor", "at random"]),
    "adcsr": ({"module.body.1.conv_in.weight": torch.zeros(2)}, ["AdcSR's networks", "a whole model"]),
    "kohya": ({"lora_unet_mid_block.lora_down.weight": torch.zeros(2)}, ["kohya's format"]),
    "other": ({"x.lora_A.lora.weight": torch.zeros(2)}, ["no LoRA of a known family (it has x.lora_A"]),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_files_of_other_makers_are_named(tmp_path: Path, name: str) -> None:
    content, words = STRANGERS[name]
    torch.save(content, tmp_path / "it.pth")
    with pytest.raises(ModelError) as error:
        read_lora(tmp_path / "it.pth")
    assert all(word in str(error.value) for word in [*words, "expected a LoRA of OSEDiff, HYPIR"]), str(error.value)


class RunsCode:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


@pytest.mark.parametrize("family", ["osediff", "hypir", "pisasr"])
def test_pickles_that_run_code_or_end_early(
    base: SimpleNamespace, files: dict[str, Path], tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = tmp_path / "it.pkl", torch.load(files[family], weights_only=True)
    torch.save(content | {"more": RunsCode()}, path)
    assert_refused(base, path, "it would run code")
    assert "this ran" not in capsys.readouterr().out
    path.write_bytes(files[family].read_bytes()[:-300])
    assert_refused(base, path, "is cut short")


@pytest.mark.parametrize("family", families.NAMES)
def test_another_base_is_told(base: SimpleNamespace, files: dict[str, Path], tmp_path: Path, family: str) -> None:
    """A wider UNet: shapes; one more layer a block: modules that the file has not."""
    from diffusers import UNet2DConditionModel

    for change in ({"layers_per_block": 2}, {"block_out_channels": (64, 128)}):
        folder = tmp_path / next(iter(change))
        unet = UNet2DConditionModel.from_config({**base.unet.config, **change})
        families.write_base(folder, unet, base.vae)
        if family in ("osediff", "pisasr") and "layers_per_block" in change:
            continue  # They list their modules themselves, and these are all there.
        with pytest.raises(ModelError, match=r"use the base model that it was trained on, SD 2\.1 base"):
            load_model(str(folder), base.context, files[family])
