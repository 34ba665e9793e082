"""Run the full-precision model over pictures while observers look at what every layer is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.reference import reference_networks
from intsr.types import NETWORKS

if TYPE_CHECKING:
    from intsr.calib.model import SRModel

Observer = Callable[[nn.Module, tuple[Any, ...]], None]


@torch.no_grad()
def run_observed(
    model: SRModel,
    batches: Iterable[torch.Tensor],
    modules: Mapping[str, nn.Module],
    observers: Mapping[str, Observer],
) -> None:
    """batches: (N, 3, H, W) float32 in [-1, 1]. Each observer is called before its site's module, with its inputs.

    Nothing stays behind in the model, after a failure neither.
    """
    handles = [modules[site].register_forward_pre_hook(observer) for site, observer in observers.items()]
    networks = reference_networks(model)
    try:
        for x in batches:
            for name in NETWORKS:
                x = networks[name](x)
    finally:
        for handle in handles:
            handle.remove()
