"""Surgery on torch modules: copies that share their weights, and layers put in other layers' places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
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


def through_blocks(unet: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Run the down, mid and up blocks of diffusers' UNet, which wants neither time nor context any more."""
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, states = block(hidden_states=hidden, temb=None)
        skips.extend(states)
    hidden = unet.mid_block(hidden, temb=None)
    for block in unet.up_blocks:
        count = len(block.resnets)
        hidden = block(hidden_states=hidden, temb=None, res_hidden_states_tuple=tuple(skips[-count:]))
        del skips[-count:]
    return hidden


def video_layers_of(module: nn.Module) -> dict[str, nn.Conv2d | nn.Conv3d | nn.Linear]:
    """As `layers_of`, with every Conv3d."""
    kinds = nn.Conv2d | nn.Conv3d | nn.Linear
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def layers_of(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return every Conv2d and Linear by its dotted name, in module order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
