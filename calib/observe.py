"""Run the full-precision model over pictures while observers look at what every layer is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.reference import reference_networks
from intsr.calib.sites import reads_bare_stream, sites_of_model
from intsr.errors import CalibrationError
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


class ChannelEnds:
    """How far every channel of one layer's input reaches, (Cin,) float32: the mean over tiles of each one's extremes.

    A mean, since the extreme of all tiles is one pixel's, and every code is wider for it (docs/calibration.md
    has figures). What guards a bare stream counts whole.
    """

    def __init__(self, site: str, layer: nn.Conv2d | nn.Linear) -> None:
        self.site, self.axis = site, 1 if isinstance(layer, nn.Conv2d) else -1
        self._low, self._high = torch.zeros(layer.weight.shape[1]), torch.zeros(layer.weight.shape[1])
        self._guard_low, self._guard_high = self._low.clone(), self._high.clone()
        self._tiles = 0

    def _tile_ends(self, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, Cin) each."""
        channels = inputs[0].movedim(self.axis, 1)
        columns = channels.reshape(*channels.shape[:2], -1)
        low, high = columns.amin(2), columns.amax(2)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(self.site, "NaN or infinity in its input", "finite activations")
        return low, high

    def see(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook, for pictures."""
        low, high = self._tile_ends(inputs)
        self._low, self._high = self._low + low.sum(0), self._high + high.sum(0)
        self._tiles += len(low)

    def see_guard(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook, for `made_pictures`."""
        low, high = self._tile_ends(inputs)
        self._guard_low = torch.minimum(self._guard_low, low.amin(0))
        self._guard_high = torch.maximum(self._guard_high, high.amax(0))

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(low, high), which hold 0, as padding is input."""
        low, high = (self._low / self._tiles).clamp_max(0), (self._high / self._tiles).clamp_min(0)
        if reads_bare_stream(self.site):
            low, high = torch.minimum(low, self._guard_low), torch.maximum(high, self._guard_high)
        return low, high


def observe_ends(
    model: SRModel, batches: Iterable[torch.Tensor], guard: Iterable[torch.Tensor], parts: tuple[str, ...]
) -> dict[str, ChannelEnds]:
    """Of every site of `parts`; two numbers a channel are kept, never an activation.

    batches, guard: (N, 3, H, W) float32 in [-1, 1]; the guard may be none. Raises CalibrationError for activations
    that are not finite.
    """
    modules = sites_of_model(model, parts)
    observers = {site: ChannelEnds(site, layer) for site, layer in modules.items()}
    run_observed(model, batches, modules, {site: observer.see for site, observer in observers.items()})
    run_observed(model, guard, modules, {site: observer.see_guard for site, observer in observers.items()})
    return observers
