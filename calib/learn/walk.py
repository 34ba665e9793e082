"""Learned calibration: walk the networks, units and stages of a plan.

encoder -> UNet on the latents of the quantized encoder -> decoder on the UNet's; targets are full precision's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from intsr.calib.data.crops import Crops
from intsr.calib.learn.block_data import CACHES, KnownPairs, PairSource, Recomputed, cached
from intsr.calib.learn.blocks import Call, Seen, Unit, layer_inputs, units_of_network
from intsr.calib.learn.initialize import group_layers, initialize, set_ranges
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers, with_layers
from intsr.calib.learn.stage import conclude, hard, prepare, rates_of, recomputed, rounding_penalty, set_dynamic
from intsr.calib.learn.train import Phase, Report, learned_state, restore_state, train
from intsr.calib.methods.plans import Plan, Stage
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.modules import put_modules
from intsr.calib.models.reference import reference_networks
from intsr.errors import UsageError
from intsr.types import NETWORKS, Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

CHUNK = 4
# Initialization looks at so many crops, and tries every range on as many of them as have so many pixels in all
# (enlarged): all 24 of 128x128. Of the others it takes the ends only.
PROBE_CROPS, PROBE_PX, PROBES_TRIED = 24, 24 * 128 * 128, 2
Curves = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True)
class Effort:
    """block_steps: of each unit's stages together. joint_steps: of each network's. batch: crops a step. rate: factor
    on every learning rate. cache: see `unit_data`. recompute: activations of joint steps are computed twice instead
    of kept. mixed: bfloat16 where autocast says so.
    """

    block_steps: int = 12
    joint_steps: int = 120
    batch: int = 4
    rate: float = 1.0
    cache: str = "ram"
    recompute: bool = False
    mixed: bool = False

    def __post_init__(self) -> None:
        if min(self.block_steps, self.joint_steps) < 0 or self.batch < 1 or not 0 < self.rate < 100:
            raise ValueError("steps must be 0 or more, batch 1 or more, rate between 0 and 100")
        if self.cache not in CACHES:
            raise UsageError("--cache", repr(self.cache), f"one of {', '.join(CACHES)}")


def learn(
    model: SRModel,
    plan: Plan,
    bits: Bits,
    parts: tuple[str, ...],
    crops: Crops,
    effort: Effort,
    seed: int,
    journal: Journal,
    report: Report,
    device: str = "cpu",
) -> tuple[dict[str, QuantizedLayer], Curves]:
    """Train what the plan says; returns every integer layer of `parts`, and the curves. Raises CalibrationError."""
    layers = quantized_layers(model, bits, parts, plan.let, plan.symmetric)
    references = {name: network.to(device) for name, network in reference_networks(model).items()}
    for layer in layers.values():
        layer.to(device)
    values = [crop.to(device) for crop in crops.all]
    exact = values
    curves: Curves = {}
    for name in NETWORKS:
        own = {site: layer for site, layer in layers.items() if network_of_site(site) == name}
        targets = _outputs(references[name], exact)
        if own:
            walk = _NetworkWalk(references[name], own, plan, effort, seed, journal, report, crops)
            curves |= walk.run(name, values, exact, targets)
            values = _outputs(walk.quantized, values)
        else:
            values = _outputs(references[name], values)
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
def _outputs(network: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [network(x) for x in inputs]


class _NetworkWalk:
    """One network: its units in order, then all of it."""

    def __init__(
        self,
        reference: nn.Module,
        layers: Mapping[str, QuantizedLayer],
        plan: Plan,
        effort: Effort,
        seed: int,
        journal: Journal,
        report: Report,
        crops: Crops,
    ) -> None:
        self.reference, self.layers, self.plan, self.effort = reference, layers, plan, effort
        self.seed, self.journal, self.report, self.crops = seed, journal, report, crops
        self.probes = probe_chunks(crops.train_indices, crops.guard_indices, crops.train[0].shape[-1])
        # Layers take their places as their units are done.
        self.quantized = with_layers(reference, {})

    def run(
        self, name: str, inputs: list[torch.Tensor], exact: list[torch.Tensor], targets: list[torch.Tensor]
    ) -> Curves:
        curves: Curves = {}
        units = units_of_network(self.reference, self.layers, inputs[0])
        for unit in units:
            curves |= self._unit(name, unit, inputs, exact)
        source = KnownPairs(inputs, targets)
        with recomputed(self.quantized, [unit.name for unit in units] if self.effort.recompute else []):
            for stage in self.plan.joint:
                steps = round(self.effort.joint_steps * stage.share)
                if steps:
                    seen = self._joint_inputs(inputs) if stage.restart else {}
                    curves |= self._stage(
                        f"{name}: {stage.name}",
                        stage,
                        tuple(self.layers.values()),
                        self.quantized,
                        Call((), {}),
                        source,
                        seen,
                        steps,
                    )
        return curves

    def _unit(self, name: str, unit: Unit, inputs: list[torch.Tensor], exact: list[torch.Tensor]) -> Curves:
        layers = tuple(self.layers[site] for site in unit.sites)
        key = f"{name}: {unit.name}"
        # A stage without a step leaves no trace, in what is restored neither.
        steps_of = [(stage, round(self.effort.block_steps * stage.share)) for stage in self.plan.block]
        stages = [(stage, steps) for stage, steps in steps_of if steps]
        done = self.journal.finished(key)
        if done is not None:
            self._install(unit)
            for stage, _ in stages:
                prepare(stage, layers, self.seed)
            restore_state(layers, done["layers"])
            for stage, _ in stages:
                conclude(stage, layers)
            for phase, curve in done["curves"].items():
                self.report(phase, int(curve[-1][0]), curve[-1][1])
            curves: Curves = done["curves"]
            return curves
        recomputed = Recomputed(self.quantized, self.reference, unit.name, inputs, exact)
        call, source = recomputed.call(), self._source(recomputed, len(inputs))
        probes = ((source.batch(chunk)[0] for chunk in chunks) for chunks in self.probes)
        module = self.reference.get_submodule(unit.name)
        plain = {site: self.reference.get_submodule(site) for site in unit.sites}
        seen = layer_inputs(lambda x: call.run(module, x), plain, *probes)
        initialize(layers, seen, self.plan.start, self.seed)
        self._install(unit)
        trained = self.quantized.get_submodule(unit.name)
        curves = {}
        for stage, steps in stages:
            phase = f"{key}: {stage.name}"
            curves |= self._stage(phase, stage, layers, trained, call, source, seen, steps)
        self.journal.finish(key, {"layers": learned_state(layers), "curves": curves})
        return curves

    def _source(self, recomputed: Recomputed, count: int) -> PairSource:
        return cached(recomputed, self.effort.cache, count, CHUNK, self.journal.folder)

    def _install(self, unit: Unit) -> None:
        put_modules(self.quantized, {site: self.layers[site] for site in unit.sites})

    def _joint_inputs(self, inputs: list[torch.Tensor]) -> dict[str, Seen]:
        probes = ([torch.cat([inputs[i] for i in chunk]) for chunk in chunks] for chunks in self.probes)
        return layer_inputs(self.quantized, self.layers, *probes)

    def _stage(
        self,
        name: str,
        stage: Stage,
        layers: tuple[QuantizedLayer, ...],
        module: nn.Module,
        call: Call,
        source: PairSource,
        seen: Mapping[str, Seen],
        steps: int,
    ) -> Curves:
        prepare(stage, layers, self.seed)
        done = self.journal.finished(name)
        if done is not None:
            restore_state(layers, done["layers"])
            conclude(stage, layers)
            self.report(name, steps, done["curve"][-1][1])
            return {name: done["curve"]}
        if stage.restart:
            generator = torch.Generator().manual_seed(self.seed)
            for group in group_layers(layers):
                set_ranges(group, seen[group[0].site], self.plan.start, generator)
        held_out = self.crops.held_out_indices
        energy = float(torch.stack([source.batch([i])[1].square().mean() for i in held_out]).mean())
        run = self._runner(module, call, source, max(energy, 1e-12))

        def loss(indices: Sequence[int], step: int) -> torch.Tensor:
            value = run(indices)
            return value + rounding_penalty(layers, step / steps) if "rounding" in stage.trains else value

        def held_out_loss() -> float:
            with torch.no_grad(), hard(layers):
                chunks = [held_out[i : i + CHUNK] for i in range(0, len(held_out), CHUNK)]
                return sum(float(run(chunk)) * len(chunk) for chunk in chunks) / len(held_out)

        set_dynamic(layers, stage.dynamic)
        phase = Phase(name, layers, rates_of(stage, layers, self.effort.rate), steps, loss, held_out_loss)
        curve = train(phase, self.journal, self.seed, self.crops.train_indices, self.effort.batch, self.report)
        set_dynamic(layers, False)
        conclude(stage, layers)
        self.journal.finish(name, {"layers": learned_state(layers), "curve": curve})
        return {name: curve}

    def _runner(
        self, module: nn.Module, call: Call, source: PairSource, energy: float
    ) -> Callable[[Sequence[int]], torch.Tensor]:
        def run(indices: Sequence[int]) -> torch.Tensor:
            x, target = source.batch(indices)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.effort.mixed):
                y = call.run(module, x)
            return (y.float() - target).square().mean() / energy

        return run
