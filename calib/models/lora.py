"""OSEDiff's LoRA: read it, and merge it into the base weights.

    W <- W + (alpha / r) B A,   alpha = 8, PEFT's default, which OSEDiff leaves as it is

The file has rank_unet, rank_vae, the modules of each adapter, and the trained tensors under the names that PEFT gives
them: `SITE.lora_A.ADAPTER.weight` (r, Cin, kh, kw) or (r, in), `SITE.lora_B.ADAPTER.weight` (Cout, r, 1, 1) or
(out, r), and conv_in's own weights, `conv_in.base_layer.weight`. Three adapters divide the UNet, one has the VAE's
encoder. PassionSR's copy calls the tensors unet_state_dict and vae_state_dict; what it has for the VAE's decoder is
left out there too, as their own loaders do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from intsr.calib.models.families.architecture import current_name
from intsr.calib.models.tensor_files import Checkpoint, read_checkpoint
from intsr.errors import ModelError

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
_ADAPTED = re.compile(r"(.+)\.lora_([AB])\.(\w+)\.weight")
_BASE = re.compile(r"(conv_in)(?:\.base_layer)?\.(weight|bias)")

Updates: TypeAlias = Mapping[str, tuple[tuple[torch.Tensor, torch.Tensor], ...]]


@dataclass(frozen=True, slots=True)
class Lora:
    """updates: part -> site -> ((A, B), ...), one pair an adapter. base: part -> parameter -> what replaces it.

    notes: what a user should know of it.
    """

    path: Path
    updates: Mapping[str, Updates]
    base: Mapping[str, Mapping[str, torch.Tensor]]
    notes: tuple[str, ...] = ()


def read_lora(path: Path) -> Lora:
    """A .pkl as OSEDiff saves it, or the .safetensors that `intsr convert` makes of it. Raises ModelError."""
    checkpoint = read_checkpoint(path)
    values = checkpoint.values
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
        _check_sites(part, listed, set(updates[part]), path)
    other = sorted(set(checkpoint.tensors) - taken)
    if other:
        raise ModelError(path, f"{len(other)} tensors that OSEDiff's LoRA has not: {', '.join(other[:3])}", EXPECTED)
    _check_values(checkpoint)
    missing = [name for name in BASE_PARAMETERS if name not in base["unet"]]
    note = f"{path}: no {' and no '.join(missing)}, which OSEDiff's files have; the base model's are used"
    return Lora(path, updates, base, (note,) if missing else ())


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
    part: str, tensors: Mapping[str, torch.Tensor], rank: int, path: Path
) -> tuple[Updates, dict[str, torch.Tensor]]:
    """LoRA pairs by site, and base weights by parameter."""
    sides: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    base: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        adapted, plain = _ADAPTED.fullmatch(name), _BASE.fullmatch(name)
        if adapted and adapted[3] in ADAPTERS[part]:
            sides.setdefault((adapted[1], adapted[3]), {})[adapted[2]] = tensor.float()
        elif plain and part == "unet":
            base[f"{plain[1]}.{plain[2]}"] = tensor.float()
        else:
            expected = f"lora_A and lora_B of {', '.join(ADAPTERS[part])}"
            raise ModelError(path, f"{part}: {name}", expected, "only OSEDiff's layout is read")
    updates: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for (site, adapter), pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise ModelError(path, f"{part}.{site}: only lora_{''.join(pair)} of {adapter}", "lora_A and lora_B")
        if not rank == pair["A"].shape[0] == pair["B"].shape[1]:
            got = f"{part}.{site}: lora_A {tuple(pair['A'].shape)}, lora_B {tuple(pair['B'].shape)}"
            raise ModelError(path, got, f"rank {rank}, as rank_{part} says")
        updates.setdefault(site, []).append((pair["A"], pair["B"]))
    return {site: tuple(pairs) for site, pairs in updates.items()}, base


def _check_sites(part: str, listed: set[str], found: set[str], path: Path) -> None:
    for got, names in (("listed without weights", listed - found), ("with weights but not listed", found - listed)):
        if names:
            found_wrong = f"{part}: {len(names)} modules {got}: {', '.join(sorted(names)[:3])}"
            raise ModelError(path, found_wrong, "module lists that fit the weights")


def merge_lora(lora: Lora, part: str, weights: dict[str, torch.Tensor]) -> None:
    """Replace what the LoRA changes in `weights`, parameter name -> tensor, by merged float32 tensors.

    Raises ModelError where it belongs to another model.
    """

    def base_of(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        base = weights.get(name)
        # What was a 1x1 convolution in an older diffusers is a linear layer now.
        if base is None or (*base.shape[:2], base.numel()) != (*shape[:2], math.prod(shape)):
            expected = "no such weight" if base is None else str(tuple(base.shape))
            got, fix = f"{part}.{name} of shape {shape}", "use the base model that it was trained on"
            raise ModelError(lora.path, got, f"the model's: {expected}", fix)
        return base

    for name, tensor in lora.base[part].items():
        weights[name] = tensor.reshape(base_of(name, tuple(tensor.shape)).shape)
    for site, pairs in lora.updates[part].items():
        name = f"{site}.weight"
        for a, b in pairs:
            base = base_of(name, (b.shape[0], *a.shape[1:])).float()
            weights[name] = base + (ALPHA / len(a)) * (b.flatten(1) @ a.flatten(1)).reshape(base.shape)
