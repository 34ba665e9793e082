"""PiSA-SR: two LoRAs on the UNet, one for pixels and one for what they mean, and x0 = z - e at t = 1.

    e = PIX e_pix + SEM (e_both - e_pix)        e_pix: with the first LoRA, e_both: with both

Where SEM is 0 or PIX that is one network times PIX; else it is two, which no engine is. s is 8 / r each, 8 being
PEFT's default of lora_alpha. Three adapters divide the UNet for each LoRA; the file lists the modules of all six.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from intsr.calib.models.families.family import Family, Lora, Randomize, Shapes, Updates, ending_with, matrices
from intsr.calib.models.families.osediff import ALPHA, adapter_of_module
from intsr.calib.models.families.random_pairs import random_pair
from intsr.calib.models.lora import AdapterSize, check_listed, read_pairs
from intsr.calib.models.tensor_files import SHOWN, Checkpoint
from intsr.errors import ModelError, UsageError
from intsr.types import RunDefaults, is_kind

KINDS = ("pix", "sem")
DIVISIONS = ("encoder", "decoder", "others")
RANKS = {kind: f"lora_rank_unet_{kind}" for kind in KINDS}
LISTS = {
    f"default_{division}_{kind}": f"unet_lora_{division}_modules_{kind}" for kind in KINDS for division in DIVISIONS
}
VALUES = {*RANKS.values(), *LISTS.values()}
PREFIX = "state_dict_unet."
# What makes e of the UNet's last activations.
LAST_PARAMETERS = ("conv_out.weight", "conv_out.bias")
EXPECTED = "PiSA-SR's LoRAs: lora_rank_unet_pix and _sem, six module lists, state_dict_unet"
MODULES = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"),
    *("proj_out", "proj_in", "ff.net.2", "ff.net.0.proj"),
)
RANK = 4


def _claims(checkpoint: Checkpoint) -> bool:
    return not VALUES.isdisjoint(checkpoint.values)


def read_weighted(checkpoint: Checkpoint, pix: float, sem: float) -> Lora:
    """Read what makes e with these weights, one network. Raises ModelError; UsageError for weights that take two."""
    if not 0 < pix < math.inf or sem not in (0, pix):
        expected = "PIX,SEM with PIX above 0 and SEM 0 or the same: others take two networks at once"
        raise UsageError("--pisa-weights", f"{pix:g},{sem:g}", expected, "for example 1,1 or 1.2,0")
    _check_values(checkpoint)
    updates = {kind: _pairs_of(kind, checkpoint) for kind in KINDS}
    chosen = [updates[kind] for kind in (KINDS if sem else KINDS[:1])]
    sites = dict.fromkeys(site for each in chosen for site in each)
    merged = {site: tuple(pair for each in chosen for pair in each.get(site, ())) for site in sites}
    factors = {} if pix == 1 else {"unet": dict.fromkeys(LAST_PARAMETERS, pix)}
    variant = "" if (pix, sem) == (1, 1) else f"{pix:g},{sem:g}"
    return Lora(checkpoint.path, FAMILY, {"unet": merged}, factors=factors, variant=variant)


def _check_values(checkpoint: Checkpoint) -> None:
    path, values = checkpoint.path, checkpoint.values
    wrong = sorted(set(values) ^ VALUES)
    if wrong:
        raise ModelError(path, f"keys missing or unknown: {', '.join(wrong[:SHOWN])}", EXPECTED)
    if not all(is_kind(values[key], int) and values[key] > 0 for key in RANKS.values()):
        raise ModelError(path, f"ranks {[values[key] for key in RANKS.values()]}", "whole numbers above 0")
    if not all(isinstance(values[key], list) for key in LISTS.values()):
        raise ModelError(path, "module lists that are none", EXPECTED)
    endings = tuple(f".{adapter}.weight" for adapter in LISTS)
    other = sorted(n for n in checkpoint.tensors if not (n.startswith(PREFIX) and n.endswith(endings)))
    if other:
        got = f"{len(other)} tensors that PiSA-SR has not: {', '.join(other[:SHOWN])}"
        raise ModelError(path, got, EXPECTED)


def _pairs_of(kind: str, checkpoint: Checkpoint) -> Updates:
    """One of the two LoRAs: its three adapters together."""
    path, values = checkpoint.path, checkpoint.values
    size = AdapterSize(values[RANKS[kind]], ALPHA / values[RANKS[kind]], f"as {RANKS[kind]} says")
    ending = f"_{kind}.weight"
    own = {name.removeprefix(PREFIX): t for name, t in checkpoint.tensors.items() if name.endswith(ending)}
    updates = read_pairs("unet", own, path, lambda *_: size, EXPECTED)
    listed = {name for adapter, key in LISTS.items() if adapter.endswith(kind) for name in values[key]}
    check_listed("unet", listed, set(updates), path)
    return updates


def _make(shapes: Shapes, randomize: Randomize) -> dict[str, Any]:
    lists: dict[str, list[str]] = {key: [] for key in LISTS.values()}
    state: dict[str, torch.Tensor] = {}
    for module in filter(ending_with(MODULES).fullmatch, matrices(shapes["unet"])):
        for kind in KINDS:
            adapter = f"default_{adapter_of_module(module)}_{kind}"
            lists[LISTS[adapter]].append(module)
            a, b = (f"{module}.lora_{side}.{adapter}.weight" for side in "AB")
            state |= random_pair((a, b), shapes["unet"][f"{module}.weight"], RANK, ALPHA / RANK, randomize)
    return {**lists, **dict.fromkeys(RANKS.values(), RANK), "state_dict_unet": state}


FAMILY = Family(
    name="pisasr",
    title="PiSA-SR",
    published="pisa_sr.pkl",
    timestep=1,
    x0_rule="difference",
    resize_filter="bicubic",
    # Tiles of 96 latents that share 32.
    defaults=RunDefaults("pisasr", "adain", tile_px=192, overlap_divisor=3, min_side_px=512),
    licence="PiSA-SR's weights: no licence stated by their authors",
    claims=_claims,
    read=lambda checkpoint: read_weighted(checkpoint, 1, 1),
    make=_make,
)
