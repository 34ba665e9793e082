"""What a family's file changes in a base model, and how it is merged.

    W <- W + s B A

A is (r, Cin, kh, kw) or (r, in), B is (Cout, r, 1, 1) or (out, r), as PEFT stores them. The families' readers
(`families`) tell r and s; here s has gone into B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from intsr.calib.models.families.family import Lora, Updates, matrices
from intsr.calib.models.tensor_files import SHOWN
from intsr.errors import ModelError

_ADAPTED = re.compile(r"(.+)\.lora_([AB])(?:\.(\w+))?\.weight")


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """What a file says of an adapter at a site: its rank, and the scale s. source: where it says so, for errors."""

    rank: int
    scale: float
    source: str


def read_pairs(
    part: str,
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    size_of: Callable[[str, str], AdapterSize | None],
    expected: str,
) -> Updates:
    """Pair the tensors `SITE.lora_A[.ADAPTER].weight` and `lora_B`, by site, in the file's order.

    size_of: (site, adapter or "") -> None where the layout has no such adapter. expected: the layout in words.
    Raises ModelError for any other tensor, a half of a pair, and other ranks.
    """
    sides: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        adapted = _ADAPTED.fullmatch(name)
        if adapted is None or size_of(adapted[1], adapted[3] or "") is None:
            raise ModelError(path, f"{part}: {name}", expected, "no other layout is read")
        sides.setdefault((adapted[1], adapted[3] or ""), {})[adapted[2]] = tensor.float()
    updates: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for (site, adapter), pair in sides.items():
        size = size_of(site, adapter)
        assert size is not None
        if set(pair) != {"A", "B"}:
            of_adapter = f" of {adapter}" if adapter else ""
            raise ModelError(path, f"{part}.{site}: only lora_{''.join(pair)}{of_adapter}", "lora_A and lora_B")
        a, b = (tuple(pair[side].shape) for side in "AB")
        if (*a[:1], *b[1:]) != (size.rank, size.rank, *(1 for _ in a[2:])):
            got = f"{part}.{site}: lora_A {a}, lora_B {b}"
            raise ModelError(path, got, f"rank {size.rank}, {size.source}")
        scaled = pair["B"] if size.scale == 1 else size.scale * pair["B"]
        updates.setdefault(site, []).append((pair["A"], scaled))
    return {site: tuple(pairs) for site, pairs in updates.items()}


def check_listed(part: str, listed: set[str], found: set[str], path: Path) -> None:
    """Raises ModelError where the modules that a file lists are not those that it has weights of."""
    for got, names in (("listed without weights", listed - found), ("with weights but not listed", found - listed)):
        if names:
            found_wrong = f"{part}: {len(names)} modules {got}: {', '.join(sorted(names)[:SHOWN])}"
            raise ModelError(path, found_wrong, "module lists that fit the weights")


def merge_lora(lora: Lora, part: str, weights: dict[str, torch.Tensor]) -> None:
    """Replace what the LoRA changes in `weights`, parameter name -> tensor, by merged float32 tensors.

    Raises ModelError where it belongs to another model.
    """
    fix = f"use the base model that it was trained on, {lora.family.base}"

    def base_of(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        base = weights.get(name)
        # What was a 1x1 convolution in an older diffusers is a linear layer now.
        if base is None or (*base.shape[:2], base.numel()) != (*shape[:2], math.prod(shape)):
            expected = "no such weight" if base is None else str(tuple(base.shape))
            raise ModelError(lora.path, f"{part}.{name} of shape {shape}", f"the model's: {expected}", fix)
        return base

    updates = lora.updates.get(part, {})
    if part in lora.required:
        _check_required(lora, part, weights, set(updates), fix)
    for name, tensor in lora.base.get(part, {}).items():
        weights[name] = tensor.reshape(base_of(name, tuple(tensor.shape)).shape)
    for site, pairs in updates.items():
        name = f"{site}.weight"
        for a, b in pairs:
            base = base_of(name, (b.shape[0], *a.shape[1:])).float()
            weights[name] = base + (b.flatten(1) @ a.flatten(1)).reshape(base.shape)
    for name, factor in lora.factors.get(part, {}).items():
        weights[name] = factor * weights[name].float()


def _check_required(lora: Lora, part: str, weights: Mapping[str, torch.Tensor], found: set[str], fix: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = set(filter(lora.required[part].fullmatch, matrices(shapes)))
    for got, names in (("missing", wanted - found), ("too much", found - wanted)):
        if names:
            told = f"{part}: {len(names)} modules {got}: {', '.join(sorted(names)[:SHOWN])}"
            raise ModelError(lora.path, told, f"{lora.family.title}'s: {len(wanted)} modules of this model", fix)
