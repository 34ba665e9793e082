"""Learned calibration: walk the networks, blocks and stages of a method.

encoder -> UNet on the latents of the quantized encoder -> decoder on the UNet's; targets are full precision's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.block_data import KnownPairs, PairSource, Recomputed, cached
from intsr.calib.learn.blocks import ActivationStatistics, Block, Call, blocks_of_network, layer_statistics
from intsr.calib.learn.initialize import group_layers, set_ranges
from intsr.calib.learn.method import Stage, add_parameters, freeze, recomputed
from intsr.calib.learn.quantized_layer import QuantizedLayer, with_layers
from intsr.calib.learn.stages import (
    CHUNK,
    Curves,
    Loss,
    Run,
    initialize_block,
    mean_square,
    on_device,
    outputs,
    probe_chunks,
    rotations_of,
    run_stage,
    with_steps,
)
from intsr.calib.learn.train import learned_state, restore_state
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.modules import put_modules
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# What a round leaves of the held-out loss at least, where the next one is slower; by how much, and the slowest rate.
CONVERGED, SLOWER, SLOWEST = 0.98, 0.3, 0.005


def converged(curve: list[list[float]]) -> bool:
    """Tell whether a round of training has won too little of the held-out loss to have another like it. curve: of
    `train`."""
    return min(held_out for _, _, held_out in curve) > CONVERGED * curve[0][2]


def learn(
    model: SRModel, bits: Bits, parts: tuple[str, ...], run: Run, device: str = "cpu"
) -> tuple[dict[str, QuantizedLayer], Curves]:
    """Train what the method says; returns every integer layer of `parts`, and the curves. Raises CalibrationError."""
    layers, references, values = on_device(model, bits, parts, run, device)
    exact = values
    curves: Curves = {}
    for name in references:
        own = {site: layer for site, layer in layers.items() if network_of_site(site) == name}
        targets = outputs(references[name], exact)
        if own:
            walk = NetworkWalk(name, references[name], own, run)
            curves |= walk.train(values, exact, targets)
            values = outputs(walk.quantized, values)
        else:
            values = outputs(references[name], values)
        exact = targets
    return layers, curves


@dataclass(frozen=True, slots=True)
class _Trainee:
    """A block, or a whole network, that a stage trains."""

    layers: tuple[QuantizedLayer, ...]
    # The quantized block in its place, and what it is called with beside its input.
    module: nn.Module
    call: Call
    # Its inputs behind the quantized blocks, and its full-precision outputs.
    source: PairSource


class NetworkWalk:
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
                curves |= self._rounds(stage, whole, seen, steps)
        return curves

    def _rounds(
        self, stage: Stage, trainee: _Trainee, seen: Mapping[str, ActivationStatistics], steps: int
    ) -> Curves:
        """A whole network's stage, as often as it gains."""
        curves: Curves = {}
        for number in range(1, stage.rounds + 1):
            name = PhaseName(self.name, "", stage.name if number == 1 else f"{stage.name} {number}")
            curve = self._stage(name, stage, trainee, seen, steps)
            curves |= curve
            if converged(curve[str(name)]):
                stage = replace(stage, rate=stage.rate * SLOWER)
            if stage.rate < SLOWEST:
                break
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
        layers = tuple(self.layers[site] for site in block.sites)
        seen = initialize_block(
            self.reference, block, layers, call, probes, start=self.method.start, seed=self.run.seed
        )
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
        def loss() -> Loss:
            if stage.restart:
                generator = torch.Generator().manual_seed(self.run.seed)
                for group in group_layers(trainee.layers):
                    set_ranges(group, seen[group[0].site], self.method.start, generator)
            held_out, source = self.crops.held_out_indices, trainee.source
            energy = mean_square([source.batch([i])[1] for i in held_out])
            return self._runner(trainee.module, trainee.call, source, energy)

        return run_stage(self.run, name, stage, trainee.layers, steps=steps, loss=loss)

    def _runner(self, module: nn.Module, call: Call, source: PairSource, energy: float) -> Loss:
        def run(indices: Sequence[int]) -> torch.Tensor:
            x, target = source.batch(indices)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.mixed):
                y = call.run(module, x)
            return (y.float() - target).square().mean() / energy

        return run
