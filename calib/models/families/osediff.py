"""OSEDiff: LoRA on the UNet and on the VAE's encoder, and weights of `conv_in` of its own.

The file has rank_unet, rank_vae, the modules of each adapter, and the trained tensors under PEFT's names. s is 8 / r:
8 is PEFT's default of lora_alpha, which OSEDiff leaves as it is. Three adapters divide the UNet, one has the VAE's
encoder. PassionSR's copy calls the tensors unet_state_dict and vae_state_dict; what it has for the VAE's decoder is
left out there too, as their own loaders do.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from intsr.calib.models.families.architecture import current_name
from intsr.calib.models.families.family import Family, Lora, Randomize, Shapes, Updates, matrices
from intsr.calib.models.families.random_pairs import random_pair
from intsr.calib.models.lora import AdapterSize, check_listed, read_pairs
from intsr.calib.models.tensor_files import Checkpoint
from intsr.errors import ModelError
from intsr.types import RunDefaults

ALPHA = 8
# part -> adapter -> the list that names its modules
ADAPTERS = {
    "unet": {
        "default_encoder": "unet_lora_encoder_modules",
        "default_decoder": "unet_lora_decoder_modules",
        "default_others": "unet_lora_others_modules",
    },
    "vae": {"default_encoder": "vae_lora_encoder_modules"},
}
PASSIONSR_LEFT_OUT = {"vae": "default_decoder"}
# Values that files have, all of them; in PassionSR's copy also the list of what is left out.
VALUES = {"rank_unet", "rank_vae", *(key for adapters in ADAPTERS.values() for key in adapters.values())}
PASSIONSR_VALUES = VALUES | {"vae_lora_decoder_modules"}
BASE_PARAMETERS = ("conv_in.weight", "conv_in.bias")
EXPECTED = "OSEDiff's LoRA: rank_unet, rank_vae, module lists, state_dict_unet, state_dict_vae"
_BASE = re.compile(r"(conv_in)(?:\.base_layer)?\.(weight|bias)")
# What OSEDiff's training adapts: modules with one of these in their names, and no norms.
UNET_MODULES = re.compile(r"(?!.*norm).*(to_k|to_q|to_v|to_out\.0|conv|proj_in|proj_out|ff\.net\.2|ff\.net\.0\.proj)")
VAE_MODULES = re.compile(r"(?=encoder|quant_conv)(?!.*norm).*(conv|to_k|to_q|to_v|to_out\.0)")
RANK = 4


def _claims(checkpoint: Checkpoint) -> bool:
    return not VALUES.isdisjoint(checkpoint.values)


def _read(checkpoint: Checkpoint) -> Lora:
    """A .pkl as OSEDiff saves it, or the .safetensors that `intsr convert` makes of it. Raises ModelError."""
    path, values = checkpoint.path, checkpoint.values
    updates: dict[str, Updates] = {}
    base: dict[str, dict[str, torch.Tensor]] = {}
    taken: set[str] = set()
    for part, adapters in ADAPTERS.items():
        prefix = _prefix(checkpoint, part)
        rank = values.get(f"rank_{part}")
        modules = [values.get(key) for key in adapters.values()]
        has_lists = all(isinstance(names, list) for names in modules)
        if prefix is None or not isinstance(rank, int) or rank is True or rank < 1 or not has_lists:
            raise ModelError(path, f"no OSEDiff LoRA: its {part} lacks rank, module lists or weights", EXPECTED)
        own = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}
        taken.update(own)
        renamed = {current_name(name.removeprefix(prefix)): tensor for name, tensor in own.items()}
        if prefix.startswith(part):
            adapter = f".{PASSIONSR_LEFT_OUT.get(part)}."
            renamed = {name: tensor for name, tensor in renamed.items() if adapter not in name}
        updates[part], base[part] = _split(part, renamed, rank, path)
        listed = {current_name(f"{name}.")[:-1] for names in modules for name in names or ()}
        check_listed(part, listed, set(updates[part]), path)
    other = sorted(set(checkpoint.tensors) - taken)
    if other:
        raise ModelError(path, f"{len(other)} tensors that OSEDiff's LoRA has not: {', '.join(other[:3])}", EXPECTED)
    _check_values(checkpoint)
    missing = [name for name in BASE_PARAMETERS if name not in base["unet"]]
    note = f"{path}: no {' and no '.join(missing)}, which OSEDiff's files have; the base model's are used"
    return Lora(path, FAMILY, updates, base, notes=(note,) if missing else ())


def _check_values(checkpoint: Checkpoint) -> None:
    """An unknown value might change the result, as another alpha would. Raises ModelError."""
    known = PASSIONSR_VALUES if _prefix(checkpoint, "vae") == "vae_state_dict." else VALUES
    other = sorted(set(checkpoint.values) - known)
    if other:
        fix = f"W + ({ALPHA} / r) B A is computed, PEFT's default: where the file means that, remove them"
        raise ModelError(checkpoint.path, f"unknown keys {', '.join(other[:3])}", EXPECTED, fix)


def _prefix(checkpoint: Checkpoint, part: str) -> str | None:
    prefixes = (f"state_dict_{part}.", f"{part}_state_dict.")
    return next((p for p in prefixes if any(name.startswith(p) for name in checkpoint.tensors)), None)


def _split(
    part: str, tensors: dict[str, torch.Tensor], rank: int, path: Path
) -> tuple[Updates, dict[str, torch.Tensor]]:
    """LoRA pairs by site, and base weights by parameter."""
    plain = {name: _BASE.fullmatch(name) for name in tensors if part == "unet"}
    base = {f"{found[1]}.{found[2]}": tensors[name].float() for name, found in plain.items() if found}
    size = AdapterSize(rank, ALPHA / rank, f"as rank_{part} says")
    pairs = {name: tensor for name, tensor in tensors.items() if not plain.get(name)}
    expected = f"OSEDiff's layout: lora_A and lora_B of {', '.join(ADAPTERS[part])}"
    updates = read_pairs(part, pairs, path, lambda _, adapter: size if adapter in ADAPTERS[part] else None, expected)
    return updates, base


def adapter_of_module(name: str) -> str:
    """Return which of the UNet's three adapters has a module."""
    if "down_blocks" in name or "conv_in" in name:
        return "encoder"
    return "decoder" if "up_blocks" in name or "conv_out" in name else "others"


def _make(shapes: Shapes, randomize: Randomize) -> dict[str, Any]:
    modules = {part: matrices(shapes[part]) for part in ADAPTERS}
    lists: dict[str, list[str]] = {key: [] for adapters in ADAPTERS.values() for key in adapters.values()}
    states: dict[str, dict[str, torch.Tensor]] = {part: {} for part in ADAPTERS}
    for part, pattern in (("unet", UNET_MODULES), ("vae", VAE_MODULES)):
        for module in filter(pattern.match, modules[part]):
            kind = adapter_of_module(module) if part == "unet" else "encoder"
            lists[ADAPTERS[part][f"default_{kind}"]].append(module)
            shape = shapes[part][f"{module}.weight"]
            a, b = (f"{module}.lora_{side}.default_{kind}.weight" for side in "AB")
            states[part] |= random_pair((a, b), shape, RANK, ALPHA / RANK, randomize)
    for name in BASE_PARAMETERS:
        states["unet"][name.replace(".", ".base_layer.")] = randomize(f"unet.{name}", shapes["unet"][name])
    ranks = {f"rank_{part}": RANK for part in ADAPTERS}
    return {**lists, **ranks, **{f"state_dict_{part}": state for part, state in states.items()}}


FAMILY = Family(
    name="osediff",
    title="OSEDiff",
    published="osediff.pkl",
    timestep=999,
    resize_filter="lanczos",
    defaults=RunDefaults("osediff"),
    licence="OSEDiff's weights: Apache-2.0",
    claims=_claims,
    read=_read,
    make=_make,
)
