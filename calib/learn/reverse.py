"""Reverse calibration: modules from the output to the input, then everything together (QArtSR's RPQ and ET).

All modules in front of the one that is trained are full precision, so that its input is exact and its target has no
error of theirs; all behind it are quantized already and trained with it. The loss of a step is

    |M_q(x) - M(x)|^2 / |M(x)|^2  +  IMAGE_WEIGHT |picture_q - picture|^2 / |picture|^2

and of the extended training, over the three networks, the second term and a perceptual one. Targets are full
precision's own. docs/theory.md, "QArtSR".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.block_data import Recomputed
from intsr.calib.learn.blocks import Block, blocks_of_network, layer_statistics
from intsr.calib.learn.initialize import initialize
from intsr.calib.learn.method import Stage, add_parameters, freeze, hard_rounding, parameter_groups
from intsr.calib.learn.perceptual import perceptual_distance
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers, with_layers
from intsr.calib.learn.train import Phase, learned_state, restore_state, train
from intsr.calib.learn.walk import CHUNK, Curves, Run, outputs, probe_chunks, rotations_of, with_steps
from intsr.calib.models.families.sd21 import module_of_site, network_of_site
from intsr.calib.models.modules import put_modules
from intsr.calib.models.reference import reference_networks
from intsr.types import NETWORKS, Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

IMAGE_WEIGHT = 1.0
# Of the extended training: the picture's share and the perceptual one's.
PICTURE_WEIGHT, PERCEPTUAL_WEIGHT = 1.0, 0.01


def learn_reverse(
    model: SRModel, bits: Bits, parts: tuple[str, ...], run: Run, device: str = "cpu"
) -> tuple[dict[str, QuantizedLayer], Curves]:
    """As `walk.learn`, for methods whose `reverse` is set."""
    layers = quantized_layers(model, bits, parts, **run.method.layer_settings)
    for layer in layers.values():
        layer.to(device)
    references = {name: network.to(device) for name, network in reference_networks(model).items()}
    walk = _ReverseWalk(references, layers, [crop.to(device) for crop in run.crops.all], run)
    return layers, walk.train()


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
        # Exact inputs of each network, and the pictures.
        self.inputs: dict[str, list[torch.Tensor]] = {}
        values = crops
        for name in NETWORKS:
            self.inputs[name] = values
            values = outputs(references[name], values)
        self.pictures = values
        held_out = run.crops.held_out_indices
        self.energy = float(torch.stack([self.pictures[i].square().mean() for i in held_out]).mean())
        self.probes = probe_chunks(run.crops.train_indices, run.crops.guard_indices, crops[0].shape[-1])

    def train(self) -> Curves:
        curves: Curves = {}
        done: tuple[QuantizedLayer, ...] = ()
        for name in reversed(NETWORKS):
            sites = [site for site in self.layers if network_of_site(site) == name]
            blocks = blocks_of_network(self.references[name], sites, self.inputs[name][0])
            for module in reversed(modules_of_network(name, blocks)):
                self._initialize(module)
                own = tuple(self.layers[site] for block in module.blocks for site in block.sites)
                done = (*own, *done)
                for stage, steps in with_steps(self.run.method.block, self.run.options.block_steps):
                    phase = PhaseName(name, module.name, stage.name)
                    curves |= self._stage(phase, stage, done, steps, self._module_loss(module))
        for stage, steps in with_steps(self.run.method.joint, self.run.options.joint_steps):
            curves |= self._stage(PhaseName("all", "", stage.name), stage, done, steps, self._picture_loss)
        return curves

    def _initialize(self, module: Module) -> None:
        """Bases of all its grids, from exact inputs; then its layers take their places."""
        reference, inputs = self.references[module.network], self.inputs[module.network]
        name = PhaseName(module.network, module.name, "start")
        layers = tuple(self.layers[site] for block in module.blocks for site in block.sites)

        def start() -> dict[str, Any]:
            for block in module.blocks:
                source = Recomputed(reference, reference, block.name, inputs, inputs)
                call, part = source.call(), reference.get_submodule(block.name)
                probes = ((source.input(chunk) for chunk in chunks) for chunks in self.probes)
                plain = {site: reference.get_submodule(site) for site in block.sites}
                own = [self.layers[site] for site in block.sites]
                seen = layer_statistics(
                    lambda x, call=call, part=part: call.run(part, x), plain, *probes, rotations=rotations_of(own)
                )
                initialize(own, seen, self.run.method.start, self.run.seed)
            return {"layers": learned_state(layers)}

        done, _ = self.run.journal.step(str(name), start)
        restore_state(layers, done["layers"])
        put_modules(self.quantized[module.network], {layer.site: layer for layer in layers})

    def _picture(self, network: str, x: torch.Tensor) -> torch.Tensor:
        """The picture that an input of `network` becomes."""
        for name in NETWORKS[NETWORKS.index(network) :]:
            x = self.quantized[name](x)
        return x

    def _batch(self, values: Sequence[torch.Tensor], indices: Sequence[int]) -> torch.Tensor:
        return torch.cat([values[i] for i in indices])

    def _picture_error(self, picture: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        return (picture.float() - self._batch(self.pictures, indices)).square().mean() / max(self.energy, 1e-12)

    def _module_loss(self, module: Module) -> Callable[[Sequence[int]], torch.Tensor]:
        exact = self.references[module.network].get_submodule(module.name)
        trained = self.quantized[module.network].get_submodule(module.name)

        def loss(indices: Sequence[int]) -> torch.Tensor:
            x = self._batch(self.inputs[module.network], indices)
            with _compared(trained, exact) as distances:
                picture = self._picture(module.network, x)
            return torch.stack(distances).mean() + IMAGE_WEIGHT * self._picture_error(picture, indices)

        return loss

    def _picture_loss(self, indices: Sequence[int]) -> torch.Tensor:
        picture = self._picture(NETWORKS[0], self._batch(self.inputs[NETWORKS[0]], indices))
        perceptual = perceptual_distance(picture.float(), self._batch(self.pictures, indices))
        return PICTURE_WEIGHT * self._picture_error(picture, indices) + PERCEPTUAL_WEIGHT * perceptual

    def _stage(
        self,
        name: PhaseName,
        stage: Stage,
        layers: tuple[QuantizedLayer, ...],
        steps: int,
        run: Callable[[Sequence[int]], torch.Tensor],
    ) -> Curves:
        """Train one stage, or restore what an earlier run has learned in it."""
        add_parameters(stage, layers, self.run.seed)
        done, restored = self.run.journal.step(str(name), lambda: self._trained(name, stage, layers, steps, run))
        restore_state(layers, done["layers"])
        freeze(stage, layers)
        if restored:
            self.run.report(name, steps, done["curve"][-1][1])
        return {str(name): done["curve"]}

    def _trained(
        self,
        name: PhaseName,
        stage: Stage,
        layers: tuple[QuantizedLayer, ...],
        steps: int,
        run: Callable[[Sequence[int]], torch.Tensor],
    ) -> dict[str, Any]:
        options, held_out = self.run.options, self.run.crops.held_out_indices

        def held_out_loss() -> float:
            with torch.no_grad(), hard_rounding(layers):
                chunks = [held_out[i : i + CHUNK] for i in range(0, len(held_out), CHUNK)]
                return sum(float(run(chunk)) * len(chunk) for chunk in chunks) / len(held_out)

        rates = parameter_groups(stage, layers, options.rate)
        phase = Phase(name, layers, rates, steps, lambda indices, step: run(indices), held_out_loss)
        crops, batch, report = self.run.crops.train_indices, options.batch, self.run.report
        curve = train(phase, self.run.journal, self.run.seed, crops=crops, batch=batch, report=report)
        return {"layers": learned_state(layers), "curve": curve}


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
