"""Run the full-precision model over pictures while observers look at what every layer is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.models.families.sd21 import reads_bare_stream
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import sites_of_model
from intsr.errors import CalibrationError
from intsr.kernels.layer_algebra import Layer, channel_axis

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

Observer = Callable[[nn.Module, tuple[Any, ...]], None]


@contextmanager
def observed(modules: Mapping[str, nn.Module], observers: Mapping[str, Observer]) -> Iterator[None]:
    """Have each observer called before its site's module, with its inputs; at the end, however it comes, no more."""
    handles = [modules[site].register_forward_pre_hook(observer) for site, observer in observers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_observed(
    model: SRModel,
    batches: Iterable[torch.Tensor],
    modules: Mapping[str, nn.Module],
    observers: Mapping[str, Observer],
) -> None:
    """batches: (N, 3, H, W) float32 in [-1, 1], through the model `observed`."""
    networks = reference_networks(model).values()
    with observed(modules, observers):
        for x in batches:
            for network in networks:
                x = network(x)


class ChannelRanges:
    """How far every channel of one layer's input reaches, picture by picture.

    A range is the mean over pictures of each one's extremes: the extreme of all is one pixel's, and every code is
    wider for it. The guard's pictures count by their mean, too; where nothing norms the stream in front of the layer
    they count whole, since what is clipped there is a flat colour's level. docs/measure/methods.md has figures.
    """

    def __init__(self, site: str, layer: Layer) -> None:
        self.site, self.axis = site, channel_axis(layer)
        self._pictures: list[torch.Tensor] = []
        self._guard: list[torch.Tensor] = []

    def see(self, _: nn.Module, inputs: tuple[Any, ...], *, guard: bool = False) -> None:
        """A forward pre-hook; guard: for `made_pictures`."""
        columns = inputs[0].movedim(self.axis, 0).flatten(1)
        # (2, Cin): the least and greatest value of every channel, and 0, as padding is input.
        ends = torch.stack([columns.amin(1).clamp_max(0), columns.amax(1).clamp_min(0)])
        if not bool(torch.isfinite(ends).all()):
            raise CalibrationError(self.site, "NaN or infinity in its input", "finite activations")
        (self._guard if guard else self._pictures).append(ends)

    def amax(self) -> torch.Tensor:
        """(Cin,): how far each channel goes at most, on pictures and, of a bare stream, on the guard."""
        seen = [*self._pictures, *(self._guard if reads_bare_stream(self.site) else ())]
        return torch.stack(seen).abs().amax((0, 1))

    def range_of(self, scale: torch.Tensor | float = 1.0) -> tuple[float, float]:
        """(low, high) of x / scale, scale (Cin,) or a number."""
        low, high = (end.mean() for end in _reach(self._pictures, scale))
        if self._guard:
            lows, highs = _reach(self._guard, scale)
            whole = reads_bare_stream(self.site)
            low = torch.minimum(low, lows.min() if whole else lows.mean())
            high = torch.maximum(high, highs.max() if whole else highs.mean())
        return float(low), float(high)


def _reach(seen: Sequence[torch.Tensor], scale: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest value of x / scale in each picture, (pictures,) both."""
    low, high = torch.stack(list(seen)).unbind(1)
    return (low / scale).amin(1), (high / scale).amax(1)


def observe_ranges(
    model: SRModel, batches: Iterable[torch.Tensor], guard: Iterable[torch.Tensor], parts: tuple[str, ...]
) -> dict[str, ChannelRanges]:
    """Observe every site of `parts`; two numbers a channel and picture are kept, never an activation.

    batches, guard: (N, 3, H, W) float32 in [-1, 1]; the guard may be none. Raises CalibrationError for activations
    that are not finite.
    """
    modules = sites_of_model(model, parts)
    observers = {site: ChannelRanges(site, layer) for site, layer in modules.items()}
    run_observed(model, batches, modules, {site: observer.see for site, observer in observers.items()})
    see_guard = {site: partial(observer.see, guard=True) for site, observer in observers.items()}
    run_observed(model, guard, modules, see_guard)
    return observers
