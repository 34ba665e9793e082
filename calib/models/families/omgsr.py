"""OMGSR-S: two adapters as PEFT saves them, on the UNet and on the VAE's encoder.

The folder holds `unet_lora_adapter/` and `vae_encoder_lora_adapter/`, each with adapter_config.json and
adapter_model.safetensors: `base_model.model.MODULE.lora_A.weight` and `lora_B`, the second one's modules by their
names inside the encoder. Of the configurations rank, alpha, their patterns and rsLoRA's scale are honoured; whatever
else would change the result is refused by its name. t = 273, epsilon.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from intsr.calib.models.families.architecture import current_name
from intsr.calib.models.families.family import Family, Lora, Randomize, Shapes, ending_with, matrices
from intsr.calib.models.families.random_pairs import random_pair
from intsr.calib.models.lora import AdapterSize, read_pairs
from intsr.calib.models.spec import read_json
from intsr.calib.models.tensor_files import CHECKPOINT_SUFFIXES, Checkpoint, read_checkpoint, write_safetensors
from intsr.errors import ModelError
from intsr.types import SYNTHETIC_NOTE, RunDefaults, is_kind

# Folder -> the part that it adapts, and where in the part its names begin.
ADAPTERS = {"unet_lora_adapter": ("unet", ""), "vae_encoder_lora_adapter": ("vae", "encoder.")}
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPECTED = f"OMGSR-S's folder: {' and '.join(f'{name}/' for name in ADAPTERS)}, as PEFT saves them"
# What is honoured, and what changes nothing once an adapter is trained.
HONOURED = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
HARMLESS = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
)
# Values that say "not used".
UNUSED: tuple[Any, ...] = (None, False, "none", [], {})
# Starts that leave the base as it is.
STARTS = (True, False, "gaussian")
MODULES = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
RANKS = {"unet_lora_adapter": 32, "vae_encoder_lora_adapter": 16}


def read_adapters(folder: Path) -> Checkpoint:
    """Read a folder of PEFT's adapters like one file: FOLDER.NAME -> tensor, FOLDER -> configuration.

    Raises ModelError where no folder in it holds an adapter, or one is not whole.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{PEFT_CONFIG}"))
    if not found:
        one = (folder / PEFT_CONFIG).is_file()
        expected = f"a file with {' '.join(CHECKPOINT_SUFFIXES)}, or {EXPECTED}"
        raise ModelError(folder, "one PEFT adapter" if one else "a folder", expected, f"give {folder.parent}" * one)
    values = {path.name: read_json(path / PEFT_CONFIG) for path in found}
    tensors, notes = dict[str, torch.Tensor](), set[str]()
    for path in found:
        own = read_checkpoint(path / PEFT_WEIGHTS)
        tensors |= {f"{path.name}.{name}": tensor for name, tensor in own.tensors.items()}
        notes.add(own.note)
    return Checkpoint(folder, tensors, values, next(iter(notes)) if len(notes) == 1 else "")


def _claims(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(f"{folder}.") for folder in ADAPTERS for name in checkpoint.tensors)


def _read(checkpoint: Checkpoint) -> Lora:
    updates, required = {}, {}
    folders = {name.partition(".")[0] for name in checkpoint.tensors}
    if folders != set(ADAPTERS):
        raise ModelError(checkpoint.path, f"adapters {', '.join(sorted(folders))}", EXPECTED)
    for folder, (part, inside) in ADAPTERS.items():
        config_path = checkpoint.path / folder / PEFT_CONFIG
        config = checkpoint.values[folder]
        _check_config(config, config_path)
        tensors, start = dict[str, torch.Tensor](), f"{folder}.{PREFIX}"
        expected = f"{PREFIX}MODULE.lora_A.weight and lora_B, of OMGSR-S's {folder}"
        for name, tensor in checkpoint.tensors.items():
            if name.startswith(start):
                tensors[current_name(name.removeprefix(start))] = tensor
            elif name.startswith(f"{folder}."):
                raise ModelError(checkpoint.path / folder, f"{part}: {name.removeprefix(f'{folder}.')}", expected)
        weights_path = checkpoint.path / folder / PEFT_WEIGHTS
        pairs = read_pairs(part, tensors, weights_path, _sizes(config, config_path), expected)
        updates[part] = {f"{inside}{site}": each for site, each in pairs.items()}
        required[part] = _targets(config["target_modules"], inside, config_path)
    return Lora(checkpoint.path, FAMILY, updates, required=required)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError for what is no LoRA, and for settings that would change the result."""
    if config.get("peft_type") != "LORA":
        raise ModelError(path, f"peft_type {config.get('peft_type')!r}", "LORA")
    for key, value in config.items():
        if key == "init_lora_weights":
            if value not in STARTS:
                raise ModelError(path, f"{key} {value!r}", "a start that leaves the base as it is: true or gaussian")
        elif key not in HONOURED + HARMLESS and value not in UNUSED:
            raise ModelError(path, f"{key} {value!r}", "plain LoRA: W + s B A", "merge it with PEFT first")
    numbers = {"r": (int,), "lora_alpha": (int, float)}
    wrong = [key for key, kinds in numbers.items() if not is_kind(config.get(key), *kinds) or config[key] <= 0]
    wrong += [key for key in ("rank_pattern", "alpha_pattern") if not isinstance(config.get(key) or {}, dict)]
    if wrong:
        raise ModelError(path, f"{wrong[0]} {config.get(wrong[0])!r}", "r and lora_alpha above 0, patterns by module")
    for key, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        if not all(is_kind(value, *kinds) and value > 0 for value in (config.get(key) or {}).values()):
            raise ModelError(path, f"{key} {config[key]!r}", "numbers above 0, by module")
    targets = config.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if not targets or not all(isinstance(name, str) for name in names):
        raise ModelError(path, f"target_modules {targets!r}", "names of modules, or a pattern")


def _targets(targets: str | list[str], inside: str, path: Path) -> re.Pattern[str]:
    if isinstance(targets, list):
        return ending_with(targets, inside)
    return _compiled(targets, f"{re.escape(inside)}(?:{targets})", "target_modules", path)


def _compiled(text: str, whole: str, key: str, path: Path) -> re.Pattern[str]:
    try:
        return re.compile(whole)
    except re.error as error:
        raise ModelError(path, f"{key} {text!r} ({error})", "a regular expression") from error


def _sizes(config: Mapping[str, Any], path: Path) -> Callable[[str, str], AdapterSize | None]:
    ranks, alphas = (
        {_compiled(text, rf"(.*\.)?({text})$", key, path): value for text, value in (config.get(key) or {}).items()}
        for key in ("rank_pattern", "alpha_pattern")
    )

    def of_pattern(patterns: Mapping[re.Pattern[str], Any], site: str, default: Any) -> Any:
        return next((value for pattern, value in patterns.items() if pattern.match(site)), default)

    def size_of(site: str, adapter: str) -> AdapterSize | None:
        if adapter:
            return None
        rank = of_pattern(ranks, site, config["r"])
        divisor = math.sqrt(rank) if config.get("use_rslora") else rank
        return AdapterSize(rank, of_pattern(alphas, site, config["lora_alpha"]) / divisor, f"as {path} says")

    return size_of


def _make(shapes: Shapes, randomize: Randomize) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for folder, (part, inside) in ADAPTERS.items():
        rank, tensors = RANKS[folder], dict[str, torch.Tensor]()
        for module in filter(ending_with(MODULES, inside).fullmatch, matrices(shapes[part])):
            start = f"{PREFIX}{module.removeprefix(inside)}"
            names = f"{start}.lora_A.weight", f"{start}.lora_B.weight"
            tensors |= random_pair(names, shapes[part][f"{module}.weight"], rank, 1.0, randomize)
        config: dict[str, Any] = {"peft_type": "LORA", "task_type": None, "r": rank, "lora_alpha": rank}
        config |= {"bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
        config |= {"init_lora_weights": "gaussian", "lora_dropout": 0.0, "target_modules": list(MODULES)}
        content[folder] = {"config": config, "tensors": tensors}
    return content


def _save(path: Path, content: Mapping[str, Any]) -> None:
    for folder, adapter in content.items():
        (path / folder).mkdir()
        write_safetensors(path / folder / PEFT_WEIGHTS, adapter["tensors"], {"format": "pt", "note": SYNTHETIC_NOTE})
        (path / folder / PEFT_CONFIG).write_text(json.dumps(adapter["config"], indent=2) + "\n", encoding="utf-8")


FAMILY = Family(
    name="omgsr",
    title="OMGSR-S",
    published="omgsr-s-512",
    timestep=273,
    resize_filter="bicubic",
    # Tiles of 64 latents that share 32.
    defaults=RunDefaults("omgsr", "adain", tile_px=128, overlap_divisor=2, min_side_px=512),
    licence="OMGSR-S's weights: no licence stated by their authors",
    claims=_claims,
    read=_read,
    make=_make,
    is_folder=True,
    save=_save,
)
