"""A published one-step model, as data, and what its file changes in a base model; each family has its own file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from intsr.calib.models.tensor_files import write_pickle
from intsr.types import SYNTHETIC_NOTE, RunDefaults

if TYPE_CHECKING:
    import torch

    from intsr.calib.models.tensor_files import Checkpoint

SD21_BASE = "SD 2.1 base"

# Part -> parameter -> shape, of a base model.
Shapes: TypeAlias = Mapping[str, Mapping[str, tuple[int, ...]]]
# Site -> ((A, s B), ...), one pair an adapter.
Updates: TypeAlias = Mapping[str, tuple[tuple["torch.Tensor", "torch.Tensor"], ...]]
# (name, shape) -> a tensor of random values.
Randomize: TypeAlias = Callable[[str, tuple[int, ...]], "torch.Tensor"]


def save_random(path: Path, content: Mapping[str, Any]) -> None:
    """Write a pickle as authors do, marked as random weights."""
    write_pickle(path, content, SYNTHETIC_NOTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What its authors' files look like, and how their code runs the model."""

    # As options and manifests have it.
    name: str
    # As its authors have it.
    title: str
    # What the files are called where they are published.
    published: str
    # The model that they are merged into.
    base: str = SD21_BASE
    # What the UNet is told, and how x0 follows from its output (`intsr.types.X0_RULES`).
    timestep: int
    x0_rule: str = "epsilon"
    # How the picture is enlarged, and what else an engine does as the authors' code does.
    resize_filter: str
    defaults: RunDefaults
    # What an engine says of its weights' licence.
    licence: str
    # Whether a file, or folder read as one, is meant to be of this family.
    claims: Callable[[Checkpoint], bool]
    # Raises ModelError.
    read: Callable[[Checkpoint], Lora]
    # (shapes of the base, random tensors) -> what such a file holds, of the published ranks; nested by name.
    make: Callable[[Shapes, Randomize], dict[str, Any]]
    # Write what `make` gave, marked as random, to a file or, where `is_folder`, into a folder that is there.
    is_folder: bool = False
    save: Callable[[Path, Mapping[str, Any]], None] = save_random


@dataclass(frozen=True, slots=True)
class Lora:
    """What a family's file changes: updates by part; base: part -> parameter -> what replaces it."""

    path: Path
    family: Family
    updates: Mapping[str, Updates]
    base: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    # Part -> pattern of the modules that must have a pair, all of them and no others; where the file itself lists
    # its modules, there is none.
    required: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    # Part -> parameter -> what it is multiplied by once it is merged.
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # How it is merged, where a file can be in several ways; in the model's name and digest.
    variant: str = ""
    # What a user should know of it.
    notes: tuple[str, ...] = ()
    # Random weights.
    synthetic: bool = False


def ending_with(names: Iterable[str], prefix: str = "") -> re.Pattern[str]:
    """Match modules below `prefix` as PEFT matches `target_modules`: the name itself, or its last parts."""
    return re.compile(rf"{re.escape(prefix)}(?:.*\.)?(?:{'|'.join(map(re.escape, names))})")


def matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List the modules whose weights have two dimensions or more, in order: what a LoRA may adapt."""
    return [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1]
