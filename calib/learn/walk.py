"""Learned calibration: walk the networks, blocks and stages of a method.

encoder -> UNet on the latents of the quantized encoder -> decoder on the UNet's; targets are full precision's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.data.crops import Crops
from intsr.calib.learn.block_data import KnownPairs, PairSource, Recomputed, cached
from intsr.calib.learn.blocks import ActivationStatistics, Block, Call, blocks_of_network, layer_statistics
from intsr.calib.learn.initialize import group_layers, initialize, set_ranges
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import (
    Method,
    Stage,
    add_parameters,
    freeze,
    hard_rounding,
    parameter_groups,
    penalty,
    recomputed,
    set_dynamic,
)
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers, with_layers
from intsr.calib.learn.train import Phase, Report, TrainingOptions, learned_state, restore_state, train
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.modules import put_modules
from intsr.calib.models.reference import reference_networks
from intsr.types import NETWORKS, Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

CHUNK = 4
# Initialization looks at so many crops, and tries every range on as many of them as have so many pixels in all
# (enlarged): all 24 of 128x128. Of the others it takes the ends only.
PROBE_CROPS, PROBE_PX, PROBES_TRIED = 24, 24 * 128 * 128, 2
Curves = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the blocks and stages of one calibration share."""

    method: Method
    options: TrainingOptions
    seed: int
    journal: Journal
    report: Report
    crops: Crops


def learn(
    model: SRModel, bits: Bits, parts: tuple[str, ...], run: Run, device: str = "cpu"
) -> tuple[dict[str, QuantizedLayer], Curves]:
    """Train what the method says; returns every integer layer of `parts`, and the curves. Raises CalibrationError."""
    layers = quantized_layers(model, bits, parts, **run.method.layer_settings)
    references = {name: network.to(device) for name, network in reference_networks(model).items()}
    for layer in layers.values():
        layer.to(device)
    values = [crop.to(device) for crop in run.crops.all]
    exact = values
    curves: Curves = {}
    for name in NETWORKS:
        own = {site: layer for site, layer in layers.items() if network_of_site(site) == name}
        targets = outputs(references[name], exact)
        if own:
            walk = _NetworkWalk(name, references[name], own, run)
            curves |= walk.train(values, exact, targets)
            values = outputs(walk.quantized, values)
        else:
            values = outputs(references[name], values)
        exact = targets
    return layers, curves


def probe_chunks(
    trained_on: Sequence[int], guard: Sequence[int], side_px: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Crops that initialization looks at, in chunks: those it tries ranges on, those it takes the ends of, the guard.

    trained_on, guard: indices of crops. side_px: of the enlarged ones. Spread over all: a range must hold each.
    """
    count = len(trained_on)
    looked_at = min(PROBE_CROPS, count)
    tried = min(looked_at, max(PROBES_TRIED, PROBE_PX // side_px**2))
    chosen = [trained_on[i * count // looked_at] for i in range(looked_at)]
    kept = {chosen[i * looked_at // tried] for i in range(tried)}
    groups = ([i for i in chosen if i in kept], [i for i in chosen if i not in kept], list(guard))
    size = min(CHUNK, tried)
    first, second, third = ([group[i : i + size] for i in range(0, len(group), size)] for group in groups)
    return first, second, third


@torch.no_grad()
def outputs(network: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the network makes of each input."""
    return [network(x) for x in inputs]


@dataclass(frozen=True, slots=True)
class _Trainee:
    """A block, or a whole network, that a stage trains."""

    layers: tuple[QuantizedLayer, ...]
    # The quantized block in its place, and what it is called with beside its input.
    module: nn.Module
    call: Call
    # Its inputs behind the quantized blocks, and its full-precision outputs.
    source: PairSource


class _NetworkWalk:
    """One network: its blocks in order, then all of it."""

    def __init__(self, name: str, reference: nn.Module, layers: Mapping[str, QuantizedLayer], run: Run) -> None:
        self.name, self.reference, self.layers, self.run = name, reference, layers, run
        self.method, self.options, self.crops = run.method, run.options, run.crops
        self.probes = probe_chunks(self.crops.train_indices, self.crops.guard_indices, self.crops.train[0].shape[-1])
        # Layers take their places as their blocks are done.
        self.quantized = with_layers(reference, {})

    def train(self, inputs: list[torch.Tensor], exact: list[torch.Tensor], targets: list[torch.Tensor]) -> Curves:
        curves: Curves = {}
        blocks = blocks_of_network(self.reference, self.layers, inputs[0])
        for block in blocks:
            curves |= self._block(block, inputs, exact)
        whole = _Trainee(tuple(self.layers.values()), self.quantized, Call((), {}), KnownPairs(inputs, targets))
        with recomputed(self.quantized, [block.name for block in blocks] if self.options.recompute else []):
            for stage, steps in with_steps(self.method.joint, self.options.joint_steps):
                seen = self._joint_statistics(inputs) if stage.restart else {}
                curves |= self._stage(PhaseName(self.name, "", stage.name), stage, whole, seen, steps)
        return curves

    def _block(self, block: Block, inputs: list[torch.Tensor], exact: list[torch.Tensor]) -> Curves:
        """Train one block, or restore what an earlier run has learned of it."""
        layers = tuple(self.layers[site] for site in block.sites)
        stages = with_steps(self.method.block, self.options.block_steps)
        name = PhaseName(self.name, block.name, "")
        done, restored = self.run.journal.step(str(name), lambda: self._trained_block(block, stages, inputs, exact))
        self._install(block)
        for stage, _ in stages:
            add_parameters(stage, layers, self.run.seed)
        restore_state(layers, done["layers"])
        for stage, _ in stages:
            freeze(stage, layers)
        curves: Curves = done["curves"]
        for phase, curve in curves.items() if restored else ():
            self.run.report(PhaseName.parse(phase), int(curve[-1][0]), curve[-1][1])
        return curves

    def _trained_block(
        self,
        block: Block,
        stages: Sequence[tuple[Stage, int]],
        inputs: list[torch.Tensor],
        exact: list[torch.Tensor],
    ) -> dict[str, Any]:
        recomputed = Recomputed(self.quantized, self.reference, block.name, inputs, exact)
        call = recomputed.call()
        source = cached(recomputed, self.options.cache, len(inputs), CHUNK, self.run.journal.folder)
        probes = ((source.batch(chunk)[0] for chunk in chunks) for chunks in self.probes)
        module = self.reference.get_submodule(block.name)
        plain = {site: self.reference.get_submodule(site) for site in block.sites}
        layers = tuple(self.layers[site] for site in block.sites)
        seen = layer_statistics(lambda x: call.run(module, x), plain, *probes, rotations=rotations_of(layers))
        initialize(layers, seen, self.method.start, self.run.seed)
        self._install(block)
        trainee = _Trainee(layers, self.quantized.get_submodule(block.name), call, source)
        curves: Curves = {}
        for stage, steps in stages:
            curves |= self._stage(PhaseName(self.name, block.name, stage.name), stage, trainee, seen, steps)
        return {"layers": learned_state(layers), "curves": curves}

    def _install(self, block: Block) -> None:
        put_modules(self.quantized, {site: self.layers[site] for site in block.sites})

    def _joint_statistics(self, inputs: list[torch.Tensor]) -> dict[str, ActivationStatistics]:
        probes = ([torch.cat([inputs[i] for i in chunk]) for chunk in chunks] for chunks in self.probes)
        return layer_statistics(self.quantized, self.layers, *probes, rotations=rotations_of(self.layers.values()))

    def _stage(
        self,
        name: PhaseName,
        stage: Stage,
        trainee: _Trainee,
        seen: Mapping[str, ActivationStatistics],
        steps: int,
    ) -> Curves:
        """Train one stage, or restore what an earlier run has learned in it."""
        add_parameters(stage, trainee.layers, self.run.seed)
        done, restored = self.run.journal.step(
            str(name), lambda: self._trained_stage(name, stage, trainee, seen, steps)
        )
        restore_state(trainee.layers, done["layers"])
        freeze(stage, trainee.layers)
        if restored:
            self.run.report(name, steps, done["curve"][-1][1])
        return {str(name): done["curve"]}

    def _trained_stage(
        self,
        name: PhaseName,
        stage: Stage,
        trainee: _Trainee,
        seen: Mapping[str, ActivationStatistics],
        steps: int,
    ) -> dict[str, Any]:
        layers, source, held_out = trainee.layers, trainee.source, self.crops.held_out_indices
        if stage.restart:
            generator = torch.Generator().manual_seed(self.run.seed)
            for group in group_layers(layers):
                set_ranges(group, seen[group[0].site], self.method.start, generator)
        energy = float(torch.stack([source.batch([i])[1].square().mean() for i in held_out]).mean())
        run = self._runner(trainee.module, trainee.call, source, max(energy, 1e-12))

        def loss(indices: Sequence[int], step: int) -> torch.Tensor:
            return run(indices) + penalty(stage, layers, step / steps)

        def held_out_loss() -> float:
            with torch.no_grad(), hard_rounding(layers):
                chunks = [held_out[i : i + CHUNK] for i in range(0, len(held_out), CHUNK)]
                return sum(float(run(chunk)) * len(chunk) for chunk in chunks) / len(held_out)

        set_dynamic(layers, stage.dynamic)
        phase = Phase(name, layers, parameter_groups(stage, layers, self.options.rate), steps, loss, held_out_loss)
        crops, batch, report = self.crops.train_indices, self.options.batch, self.run.report
        curve = train(phase, self.run.journal, self.run.seed, crops=crops, batch=batch, report=report)
        set_dynamic(layers, False)
        freeze(stage, layers)
        return {"layers": learned_state(layers), "curve": curve}

    def _runner(
        self, module: nn.Module, call: Call, source: PairSource, energy: float
    ) -> Callable[[Sequence[int]], torch.Tensor]:
        def run(indices: Sequence[int]) -> torch.Tensor:
            x, target = source.batch(indices)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.mixed):
                y = call.run(module, x)
            return (y.float() - target).square().mean() / energy

        return run


def rotations_of(layers: Iterable[QuantizedLayer]) -> dict[str, int]:
    """What `layer_statistics` rotates inputs by."""
    return {layer.site: layer.grid.spec.rotation for layer in layers}


def with_steps(stages: Sequence[Stage], steps: int) -> list[tuple[Stage, int]]:
    """Pair the stages with their steps; those with none are left out, also where they are restored."""
    shares = ((stage, round(steps * stage.share)) for stage in stages)
    return [(stage, own) for stage, own in shares if own]
