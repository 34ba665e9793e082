"""The parts of a quantization method: kinds of learned numbers, stages that train them, and where they start.

`calib.methods` has one file a method; a method whose numbers are of a new kind brings that kind with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.kernels.draq import STATIC
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.models.video import VideoModel

Layers: TypeAlias = Sequence[QuantizedLayer]
Batches: TypeAlias = Iterable[torch.Tensor]
# (model, batches of pictures, bits, parts, batches of made pictures) -> every site's quantizer.
Observe: TypeAlias = Callable[["SRModel", Batches, Bits, tuple[str, ...], Batches], dict[str, SiteQuantizer]]
# (model, clips, bits, parts, clips of made pictures) -> every site's quantizer.
ObserveVideo: TypeAlias = Callable[["VideoModel", Batches, Bits, tuple[str, ...], Batches], dict[str, SiteQuantizer]]
# The kinds of models that a method may know.
PICTURE, VIDEO = "picture", "video"


def _nothing(layer: QuantizedLayer, seed: int) -> None:
    """Most kinds are there from the beginning."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of learned numbers."""

    name: str
    # Adam's learning rate, in the kind's own unit.
    rate: float
    # Those of some layers; a grid that layers share is there once.
    parameters: Callable[[Layers], list[nn.Parameter]] = field(repr=False)
    # Make a layer's before the stage, at values that change nothing; nothing happens where they are there.
    add: Callable[[QuantizedLayer, int], None] = field(default=_nothing, repr=False)
    # What is added to the loss, (layers, share of the steps done) -> scalar.
    penalty: Callable[[Layers, float], torch.Tensor] | None = field(default=None, repr=False)
    # Whether the numbers round weights, which are then as they will be for held-out pictures and after the stage.
    rounds: bool = False


def _grids(layers: Layers) -> list[nn.Module]:
    return list({id(layer.grid): layer.grid for layer in layers}.values())


# In units of the range's width.
INPUT_RANGE = Kind("input_range", 2e-3, lambda layers: [p for g in _grids(layers) for p in (g.low, g.high)])
WEIGHT_RANGE = Kind(
    "weight_range", 2e-3, lambda layers: [p for layer in layers for p in (layer.weight_low, layer.weight_high)]
)
# The logarithm of s, and d in units of the channel's amax.
LET = Kind("let", 5e-3, lambda layers: [p for g in _grids(layers) if g.has_let for p in (g.log_scale, g.shift)])
BRANCH = Kind(
    "branch", 1e-3, lambda layers: [p for layer in layers if layer.branch for p in layer.branch.parameters()]
)
RANGES = (INPUT_RANGE, WEIGHT_RANGE)
BY_OUTPUT = RangeInit("output")


@dataclass(frozen=True, slots=True)
class Stage:
    """Some training steps of one block, or of a whole network."""

    name: str
    trains: tuple[Kind, ...]
    # Ranges follow what is seen at every step.
    dynamic: bool = False
    # Ranges are searched anew before.
    restart: bool = False
    # Of the steps given to one block, or network.
    share: float = 1.0
    # Of `learn.volts`: the tiers whose layers are trained, () for every layer.
    tiers: tuple[str, ...] = ()
    # How often a whole network's stage is repeated, at most: at a third of the rate where held-out pictures have not
    # gained by it, until that is too little to learn anything.
    rounds: int = 1
    # A factor on the kinds' rates.
    rate: float = 1.0

    def takes(self, layer: QuantizedLayer) -> bool:
        return not self.tiers or layer.tier in self.tiers


@dataclass(frozen=True, slots=True)
class Method:
    """One method: either `observe` or `observe_video`, in one pass over pictures or clips, or stages that train.

    `block` stages train one block after another against its full-precision output; `joint` stages then train a whole
    network against its own: latents for the encoder, x0 for the UNet, pictures for the decoder.
    """

    name: str
    observe: Observe | None = field(default=None, repr=False)
    observe_video: ObserveVideo | None = field(default=None, repr=False)
    # PICTURE, VIDEO or both.
    kinds: tuple[str, ...] = (PICTURE,)
    # s and d for each `channel`, for each `part` of a concatenation, or `none`.
    let: str = "none"
    start: RangeInit = BY_OUTPUT
    block: tuple[Stage, ...] = ()
    joint: tuple[Stage, ...] = ()
    # With `reverse` alone: all three networks together, on the picture, in the end (`learn.whole`).
    whole: tuple[Stage, ...] = ()
    # Of every layer's branch, as far as the layer is wide enough; 0 for none.
    rank: int = 0
    # Whether inputs of fewer than 8 bits are rotated; searched: those alone that gain by it, of video models.
    rotated: bool = False
    searched_rotations: bool = False
    # Whether modules are trained from the output to the input (`learn.reverse`): `block` stages are those of a module
    # then, and there are no `joint` ones.
    reverse: bool = False
    # Activation grids around 0.
    symmetric: bool = False
    # How activations are quantized (`kernels.draq`); all but STATIC are for simulation alone.
    form: str = STATIC
    # Whether layers are in tiers (`learn.volts`), for stages that train some of them.
    volts: bool = False

    @property
    def layer_settings(self) -> dict[str, Any]:
        """What `quantized_layers` has to know."""
        names = ("let", "symmetric", "rank", "rotated", "form")
        return {name: getattr(self, name) for name in names}

    @property
    def trains(self) -> bool:
        return self.observe is None and self.observe_video is None


def add_parameters(stage: Stage, layers: Layers, seed: int) -> None:
    """Make the numbers that only this stage trains, at values that change nothing."""
    for kind in stage.trains:
        for layer in filter(stage.takes, layers):
            kind.add(layer, seed)


def freeze(stage: Stage, layers: Layers) -> None:
    """Settle what the stage has learned, trained or restored."""
    if any(kind.rounds for kind in stage.trains):
        for layer in layers:
            layer.hard_rounding = True


@contextmanager
def hard_rounding(layers: Layers) -> Iterator[None]:
    """Within, learned rounding is as it will be: what held-out pictures judge."""
    before = [layer.hard_rounding for layer in layers]
    for layer in layers:
        layer.hard_rounding = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.hard_rounding = value


def penalty(stage: Stage, layers: Layers, done: float) -> torch.Tensor | float:
    """Return what the kinds of this stage add to the loss."""
    return sum((kind.penalty(layers, done) for kind in stage.trains if kind.penalty is not None), 0.0)


def parameter_groups(
    stage: Stage, layers: Layers, factor: float
) -> tuple[tuple[tuple[nn.Parameter, ...], float], ...]:
    """Return the stage's parameters with their rates, by kind; all others of the layers are held.

    factor: on every rate.
    """
    for layer in layers:
        layer.requires_grad_learned(False)
    groups, chosen = [], list(filter(stage.takes, layers))
    for kind in stage.trains:
        parameters = kind.parameters(chosen)
        for parameter in parameters:
            parameter.requires_grad_(True)
        if parameters:
            groups.append((tuple(parameters), kind.rate * stage.rate * factor))
    return tuple(groups)


def set_dynamic(layers: Layers, dynamic: bool) -> None:
    """Say whether ranges follow what is seen (stage one of DQC)."""
    for layer in layers:
        layer.dynamic_weights = layer.grid.dynamic = dynamic


@contextmanager
def recomputed(network: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Within, each block keeps its input alone for the backward pass, and runs a second time there."""
    modules = [network.get_submodule(name) for name in blocks]

    def wrap(forward):  # type: ignore[no-untyped-def]
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    for module in modules:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
