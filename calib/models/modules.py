"""Surgery on torch modules: copies that share their weights, and layers put in other layers' places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_sharing_weights(module: M) -> M:
    """Copy a module whose parameters are the very tensors of the original; buffers are copied."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def put_modules(module: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Replace what is at each dotted name of `module`."""
    for name, replacement in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, replacement)


def video_layers_of(module: nn.Module) -> dict[str, nn.Conv2d | nn.Conv3d | nn.Linear]:
    """As `layers_of`, with every Conv3d."""
    kinds = nn.Conv2d | nn.Conv3d | nn.Linear
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def layers_of(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return every Conv2d and Linear by its dotted name, in module order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
