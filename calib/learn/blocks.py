"""The blocks of a network that are calibrated one after another, and what each is given and returns.

A block's inputs come from the network with every block before it quantized, its targets from full precision. Nothing
of the network behind a block runs while its inputs are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from intsr.calib.models.families.sd21 import BLOCK_CLASSES
from intsr.calib.observe.hooks import observed
from intsr.kernels.rotation import rotate

Output = Callable[[Any], torch.Tensor]


class _Reached(Exception):
    """Ends a forward pass at the block whose input or output was wanted."""


@dataclass(frozen=True, slots=True)
class Block:
    """name: of the module, "" for a whole network. sites: the layers in it that are quantized."""

    name: str
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Everything but the first argument of a block's call; tensors in it have a batch axis of 1."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The block on x (N, ...): its first output."""
        extra = [_expanded(value, len(x)) for value in self.args]
        named = {key: _expanded(value, len(x)) for key, value in self.kwargs.items()}
        return first_output(module(x, *extra, **named))


def _expanded(value: Any, count: int) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
        return value.expand(count, *value.shape[1:])
    return value


def first_output(output: Any) -> torch.Tensor:
    """The tensor that a block returns, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    tensor: torch.Tensor = value if isinstance(value, torch.Tensor) else value.sample
    return tensor


def blocks_by_name(network: nn.Module, sites: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Block -> its quantized layers: residual and transformer blocks, samplers, attention, and every quantized layer
    outside of those by itself. Blocks without a quantized layer are left out."""
    owners: list[str] = []
    for name, module in network.named_modules():
        if type(module).__name__ in BLOCK_CLASSES and not any(name.startswith(f"{outer}.") for outer in owners):
            owners.append(name)
    members: dict[str, tuple[str, ...]] = {}
    for site in sites:
        owner = next((block for block in owners if site.startswith(f"{block}.")), site)
        members[owner] = (*members.get(owner, ()), site)
    return members


def blocks_of_network(network: nn.Module, sites: Iterable[str], x: torch.Tensor) -> list[Block]:
    """Blocks in the order in which `network` runs them on x."""
    members = blocks_by_name(network, sites)
    order: list[str] = []
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name in members
    ]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [Block(name, members[name]) for name in dict.fromkeys(order)]


@torch.no_grad()
def record_input(network: nn.Module, block: str, x: torch.Tensor) -> tuple[torch.Tensor, Call]:
    """Return a block's input when the network runs on x (N, ...), and the rest of its call for one picture."""
    found: list[tuple[torch.Tensor, Call]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        first = args[0] if args else rest.pop("hidden_states")
        found.append((first, Call(tuple(map(_one, args[1:])), {key: _one(value) for key, value in rest.items()})))
        raise _Reached

    handle = network.get_submodule(block).register_forward_pre_hook(hook, with_kwargs=True)
    return _until_reached(network, x, handle, found)


@torch.no_grad()
def record_output(network: nn.Module, block: str, x: torch.Tensor) -> torch.Tensor:
    """Return what the block returns when the network runs on x."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        found.append(first_output(output))
        raise _Reached

    handle = network.get_submodule(block).register_forward_hook(hook)
    return _until_reached(network, x, handle, found)


def _until_reached(network: nn.Module, x: torch.Tensor, handle: Any, found: list[Any]) -> Any:
    try:
        network(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    (value,) = found
    return value


def _one(value: Any) -> Any:
    return value[:1].clone() if isinstance(value, torch.Tensor) and value.ndim else value


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """The inputs of one layer."""

    # Those that were kept whole, (N, ...) each.
    values: tuple[torch.Tensor, ...]
    # (C,): the least and greatest value of every channel, in these and in those that only passed by.
    low: torch.Tensor
    high: torch.Tensor
    # The same two of each of the guard's pictures, (n, C), or None.
    guard: tuple[torch.Tensor, torch.Tensor] | None = None


def statistics_of(values: Sequence[torch.Tensor]) -> ActivationStatistics:
    """Inputs that were all kept."""
    low, high = (torch.stack(of_side) for of_side in zip(*map(_channel_range, values), strict=True))
    return ActivationStatistics(tuple(values), low.amin(0), high.amax(0))


def _channel_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    axis = 1 if x.ndim == 4 else x.ndim - 1
    others = [i for i in range(x.ndim) if i != axis]
    return x.amin(others), x.amax(others)


class _Watch:
    """Forward pre-hook of one layer. kinds of batches: `kept`, `passing`, `guard`. rotation: of what is recorded."""

    def __init__(self, rotation: int) -> None:
        self.kind, self.rotation = "kept", rotation
        self.values: list[torch.Tensor] = []
        self.ends: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.guard: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        x = rotate(x, self.rotation, 1 if x.ndim == 4 else -1)
        if self.kind == "guard":
            self.guard += [_channel_range(one) for one in x.split(1)]
            return
        low, high = _channel_range(x)
        ends = self.ends.setdefault(self.kind, (low, high))
        # In place: small tensors that outlive large ones keep the allocator from giving memory back.
        torch.minimum(ends[0], low, out=ends[0])
        torch.maximum(ends[1], high, out=ends[1])
        if self.kind == "kept":
            self.values.append(x)

    def statistics(self) -> ActivationStatistics:
        lows, highs = (torch.stack(of_side) for of_side in zip(*self.ends.values(), strict=True))
        guard = [torch.stack(of_side) for of_side in zip(*self.guard, strict=True)]
        return ActivationStatistics(
            tuple(self.values), lows.amin(0), highs.amax(0), (guard[0], guard[1]) if guard else None
        )


@torch.no_grad()
def layer_statistics(
    run: Callable[[torch.Tensor], Any],
    layers: Mapping[str, nn.Module],
    kept: Iterable[torch.Tensor],
    passing: Iterable[torch.Tensor] = (),
    guard: Iterable[torch.Tensor] = (),
    *,
    rotations: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, ActivationStatistics]:
    """Every layer's input while `run` goes over the batches: of `kept` all of it, of the others only the ends.

    rotations: site -> what its input is rotated by before it is recorded.
    """
    watches = {site: _Watch(rotations.get(site, 0)) for site in layers}
    for kind, batches in (("kept", kept), ("passing", passing), ("guard", guard)):
        for watch in watches.values():
            watch.kind = kind
        for batch in batches:
            # Not before: a batch that is computed as it is asked for may go through the same layers.
            with observed(layers, watches):
                run(batch)
    return {site: watch.statistics() for site, watch in watches.items()}
