"""Reverse calibration: modules from the output to the input, then everything together (QArtSR's RPQ and ET).

All modules in front of the one that is trained are full precision, so that its input is exact and its target has no
error of theirs; all behind it are quantized already and trained with it. The loss of a step is

    |M_q(x) - M(x)|^2 / |M(x)|^2  +  IMAGE_WEIGHT |picture_q - picture|^2 / |picture|^2

and then all is trained on the picture (`learn.whole`). Targets are full precision's own. docs/theory.md, "QArtSR".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.block_data import Recomputed
from intsr.calib.learn.blocks import Block, blocks_of_network
from intsr.calib.learn.quantized_layer import QuantizedLayer, with_layers
from intsr.calib.learn.stages import (
    Curves,
    Loss,
    Run,
    initialize_block,
    on_device,
    probe_chunks,
    run_stage,
    with_steps,
)
from intsr.calib.learn.train import learned_state, restore_state
from intsr.calib.learn.whole import WholeModel
from intsr.calib.models.families.sd21 import module_of_site, network_of_site
from intsr.calib.models.modules import put_modules
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

IMAGE_WEIGHT = 1.0


def learn_reverse(
    model: SRModel, bits: Bits, parts: tuple[str, ...], run: Run, device: str = "cpu"
) -> tuple[dict[str, QuantizedLayer], Curves]:
    """As `walk.learn`, for methods whose `reverse` is set."""
    layers, references, crops = on_device(model, bits, parts, run, device)
    return layers, _ReverseWalk(references, layers, crops, run).train()


@dataclass(frozen=True, slots=True)
class Module:
    """Some blocks of one network that are trained together."""

    network: str
    name: str
    blocks: tuple[Block, ...]


def modules_of_network(network: str, blocks: Sequence[Block]) -> list[Module]:
    """Blocks, in the order they run in, by `module_of_site`: modules in the same order."""
    members: dict[str, list[Block]] = {}
    for block in blocks:
        members.setdefault(module_of_site(block.name), []).append(block)
    return [Module(network, name, tuple(own)) for name, own in members.items()]


class _ReverseWalk:
    def __init__(
        self,
        references: Mapping[str, nn.Module],
        layers: Mapping[str, QuantizedLayer],
        crops: list[torch.Tensor],
        run: Run,
    ) -> None:
        self.references, self.layers, self.run = references, layers, run
        # Layers take their places as their modules are reached.
        self.quantized = {name: with_layers(network, {}) for name, network in references.items()}
        self.whole = WholeModel(references, self.quantized, crops, run)
        self.probes = probe_chunks(run.crops.train_indices, run.crops.guard_indices, crops[0].shape[-1])

    def train(self) -> Curves:
        curves: Curves = {}
        done: tuple[QuantizedLayer, ...] = ()
        with self.whole.recomputed(self.layers):
            for name in reversed(list(self.references)):
                sites = [site for site in self.layers if network_of_site(site) == name]
                blocks = blocks_of_network(self.references[name], sites, self.whole.inputs[name][0])
                for module in reversed(modules_of_network(name, blocks)):
                    self._initialize(module)
                    own = tuple(self.layers[site] for block in module.blocks for site in block.sites)
                    done = (*own, *done)
                    for stage, steps in with_steps(self.run.method.block, self.run.options.block_steps):
                        phase, loss = PhaseName(name, module.name, stage.name), partial(self._module_loss, module)
                        curves |= run_stage(self.run, phase, stage, done, steps=steps, loss=loss)
            return curves | self.whole.train(done)

    def _initialize(self, module: Module) -> None:
        """Bases of all its grids, from exact inputs; then its layers take their places."""
        reference, inputs = self.references[module.network], self.whole.inputs[module.network]
        name = PhaseName(module.network, module.name, "start")
        layers = tuple(self.layers[site] for block in module.blocks for site in block.sites)

        def start() -> dict[str, Any]:
            for block in module.blocks:
                source = Recomputed(reference, reference, block.name, inputs, inputs)
                probes = ((source.input(chunk) for chunk in chunks) for chunks in self.probes)
                own, method = [self.layers[site] for site in block.sites], self.run.method
                initialize_block(reference, block, own, source.call(), probes, start=method.start, seed=self.run.seed)
            return {"layers": learned_state(layers)}

        done, _ = self.run.journal.step(str(name), start)
        restore_state(layers, done["layers"])
        put_modules(self.quantized[module.network], {layer.site: layer for layer in layers})

    def _module_loss(self, module: Module) -> Loss:
        reference = self.references[module.network].get_submodule(module.name)
        trained = self.quantized[module.network].get_submodule(module.name)

        def loss(indices: Sequence[int]) -> torch.Tensor:
            x, exact = self.whole.pairs[module.network].batch(indices)
            with _compared(trained, reference) as distances:
                picture = self.whole.picture(module.network, x)
            return torch.stack(distances).mean() + IMAGE_WEIGHT * self.whole.picture_error(picture, exact)

        return loss


@contextmanager
def _compared(trained: nn.Module, exact: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within, a pass through `trained` appends how far its outputs are from those of `exact` on the same input."""
    distances: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        with torch.no_grad():
            expected = exact(*args, **kwargs)
        distances.extend(
            (got.float() - y).square().mean() / y.square().mean().clamp_min(1e-12)
            for got, y in zip(_tensors(output), _tensors(expected), strict=True)
        )

    handle = trained.register_forward_hook(hook, with_kwargs=True)
    try:
        yield distances
    finally:
        handle.remove()


def _tensors(output: Any) -> list[torch.Tensor]:
    """Every tensor of what a module returns: hidden states, and a down block's skips."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in _tensors(value)]
    return [output.sample]
