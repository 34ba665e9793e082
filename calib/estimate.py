"""Estimate what a calibration would take, from one real block of each kind: `calibrate --dry-run`.

The networks run once on noise of a crop's size, every block timed. The slowest residual block, and the slowest
transformer block, are then calibrated for a few steps. How much slower a training step is than a forward pass, and
the memory the process has reached, are taken from there; the rest is arithmetic over the steps of the recipe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intsr.calib.calibrate import Recipe
from intsr.calib.calibration.types import PhaseName
from intsr.calib.data.crops import Crops
from intsr.calib.data.made_pictures import guard_pictures
from intsr.calib.learn.blocks import Block, Call, blocks_of_network, record_input
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import add_parameters, parameter_groups, set_dynamic
from intsr.calib.learn.quantized_layer import quantized_layers, with_layers
from intsr.calib.learn.stages import PROBE_CROPS, initialize_block, probe_chunks
from intsr.calib.learn.train import EVALUATIONS, Phase, train
from intsr.calib.models.families.sd21 import module_of_site, network_of_site
from intsr.calib.models.phases import in_phases
from intsr.calib.models.reference import reference_networks
from intsr.errors import UsageError
from intsr.memory import peak_resident_bytes, restart_peak

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

MEASURED_STEPS = 2
# How much longer a step takes that computes its activations twice.
RECOMPUTING = 1.3


@dataclass(frozen=True, slots=True)
class MeasuredBlock:
    """One block that was really calibrated."""

    name: str
    # A full-precision pass on one crop.
    forward_s: float
    initialize_s: float
    # A training step.
    step_s: float
    # An input and its target.
    pair_bytes: int


@dataclass(frozen=True, slots=True)
class TimedNetwork:
    """A reference network on one crop. seconds: of the blocks that are calibrated, in order of execution."""

    network: nn.Module
    x: torch.Tensor
    seconds: dict[str, float]
    total_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One block to be calibrated: the input that noise gives it, and its output."""

    network: nn.Module
    block: Block
    value: torch.Tensor
    call: Call
    target: torch.Tensor
    forward_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds, peak_bytes: of the whole calibration. cache_bytes: the largest block's inputs and targets."""

    seconds: float
    block_s: float
    joint_s: float
    peak_bytes: int
    cache_bytes: int
    blocks: int
    forward_s: float
    measured: tuple[MeasuredBlock, ...]
    cache: str

    def lines(self) -> list[str]:
        """For people, with how it was made."""
        told = [
            f"{block.name}: {block.forward_s:.3f} s forward on one crop, {block.initialize_s:.1f} s to initialize, "
            f"{block.step_s:.2f} s a training step"
            for block in self.measured
        ]
        cache = f", {self.cache_bytes / 1e9:.2f} GB of it a block's inputs and targets with --cache {self.cache}"
        cache = cache if self.cache_bytes else ""
        return [
            f"measured: all {self.blocks} blocks once, {self.forward_s:.2f} s forward on one crop in all",
            *told,
            f"estimated: {self.seconds / 60:.1f} min, {self.block_s / 60:.1f} of blocks and {self.joint_s / 60:.1f} "
            f"of joint training; {self.peak_bytes / 1e9:.1f} GB{cache}",
            "how: steps of the recipe x forward time of each block x the ratio of training step to forward pass that "
            "the blocks above showed; memory: the model, the most that a block above took beside it, and the cache",
        ]

    def to_mapping(self) -> dict[str, Any]:
        block = ("name", "forward_s", "step_s", "initialize_s")
        return {
            "dry_run": True,
            "seconds": round(self.seconds, 1),
            **{name: getattr(self, name) for name in ("peak_bytes", "cache_bytes", "blocks")},
            "forward_s": round(self.forward_s, 3),
            "measured": [{name: getattr(measured, name) for name in block} for measured in self.measured],
        }


def estimate(model: SRModel, pictures: Sequence[Path], recipe: Recipe) -> Estimate:
    """Measure and add up. Raises UsageError for a method that does not train.

    The weights of all but the measured blocks are given up on the way: load the model again for anything else.
    """
    if not recipe.trains:
        raise UsageError(
            "--dry-run", f"--method {recipe.method}", "a method that trains", "it takes one pass: run it"
        )
    model, method = in_phases(model), recipe.stages
    layers = quantized_layers(model, recipe.bits, recipe.parts, **method.layer_settings)
    timed: list[TimedNetwork] = []
    blocks: dict[str, Block] = {}
    side_px = recipe.crop_px * model.spec.input_factor
    x = torch.rand(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    held_out = max(recipe.training.batch, recipe.crops // 4)
    guard = guard_pictures(1) if recipe.guard else ()
    crops = Crops((x,) * recipe.crops, (x,) * held_out, (x,) * len(guard))
    for name, network in reference_networks(model).items():
        found = blocks_of_network(network, [site for site in layers if network_of_site(site) == name], x)
        blocks |= {block.name: block for block in found}
        timed.append(TimedNetwork(network, x, *_forward_seconds(network, [block.name for block in found], x)))
        with torch.no_grad():
            x = network(x)
    samples = [
        _sample(one.network, blocks[block], one.x, one.seconds[block])
        for one in timed
        for block in _slowest(one.network, one.seconds)
    ]
    peak_bytes = peak_resident_bytes()
    given_up_bytes = _give_up_weights([one.network for one in timed], samples)
    restart_peak()
    measured = tuple(_measure(sample, layers, crops, recipe) for sample in samples)
    peak_bytes = max(peak_bytes, peak_resident_bytes() + given_up_bytes)
    return _added_up(recipe, crops, timed, measured, peak_bytes)


def _added_up(
    recipe: Recipe, crops: Crops, timed: Sequence[TimedNetwork], measured: tuple[MeasuredBlock, ...], peak_bytes: int
) -> Estimate:
    training, reverse = recipe.training, recipe.stages.reverse
    of_block, of_one, of_all = recipe.steps
    measured_s = sum(block.forward_s for block in measured)
    setup = sum(block.initialize_s for block in measured) / measured_s
    step = sum(block.step_s for block in measured) / measured_s
    recomputing = RECOMPUTING if training.recompute else 1.0

    def training_s(steps: int, trained_s: float, beside_s: float = 0.0, factor: float = 1.0) -> float:
        """Of steps through what takes `trained_s` forward on one crop, and `beside_s` of it without gradients."""
        judged = (min(steps, EVALUATIONS) + 1) * len(crops.held_out_indices) if steps else 0
        of_step = trained_s * step * factor + beside_s * training.batch
        return steps * of_step + judged * (trained_s + beside_s)

    block_s = joint_s = behind_s = 0.0
    for one in reversed(timed):
        reached_s = 0.0
        for value in one.seconds.values():
            # Inputs and targets come from both networks, run up to the block: once, or with --cache none every step.
            # In reverse, full precision runs up to it, and for its initialization alone.
            passes = 2 * (len(crops.all) if training.cache != "none" else of_block * training.batch)
            block_s += reached_s * (min(PROBE_CROPS, len(crops.train)) if reverse else passes) + value * setup
            block_s += 0.0 if reverse else training_s(of_block, value)
            reached_s += value
        front_s = 0.0
        for own_s in _module_seconds(one.seconds).values() if reverse else ():
            trained_s = one.total_s - front_s + behind_s
            block_s += training_s(of_block, trained_s, front_s + own_s, recomputing)
            front_s += own_s
        joint_s += training_s(of_one, one.total_s, 0.0, recomputing) if one.seconds else 0.0
        behind_s += one.total_s
    joint_s += training_s(of_all, behind_s, 0.0, recomputing)
    cache_bytes = 0 if reverse else max(block.pair_bytes for block in measured) * len(crops.all)
    return Estimate(
        seconds=block_s + joint_s,
        block_s=block_s,
        joint_s=joint_s,
        peak_bytes=peak_bytes + (cache_bytes if training.cache == "ram" else 0),
        cache_bytes=cache_bytes,
        blocks=sum(len(one.seconds) for one in timed),
        forward_s=behind_s,
        measured=measured,
        cache=training.cache,
    )


def _module_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """What reverse training trains together, from the blocks' own."""
    modules: dict[str, float] = {}
    for block, value in seconds.items():
        modules[module_of_site(block)] = modules.get(module_of_site(block), 0.0) + value
    return modules


@torch.no_grad()
def _forward_seconds(network: nn.Module, blocks: Sequence[str], x: torch.Tensor) -> tuple[dict[str, float], float]:
    """Seconds of every block in one forward pass, in order of execution, and of the whole."""
    seconds: dict[str, float] = {}

    def begin(name: str, *_: Any) -> None:
        seconds[name] = -time.perf_counter()

    def end(name: str, *_: Any) -> None:
        seconds[name] += time.perf_counter()

    hooks = []
    for name in blocks:
        module = network.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(partial(begin, name)))
        hooks.append(module.register_forward_hook(partial(end, name)))
    network(x)  # the first pass makes kernels: the second one counts
    start = time.perf_counter()
    network(x)
    total = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return seconds, total


def _slowest(network: nn.Module, seconds: dict[str, float]) -> list[str]:
    """The slowest block of each kind, residual and transformer blocks alone."""
    slowest: dict[str, str] = {}
    for name, value in seconds.items():
        kind = type(network.get_submodule(name)).__name__
        if kind in ("ResnetBlock2D", "Transformer2DModel") and value > seconds.get(slowest.get(kind, ""), 0.0):
            slowest[kind] = name
    return list(slowest.values()) or sorted(seconds, key=lambda name: seconds[name])[-1:]


def _sample(network: nn.Module, block: Block, x: torch.Tensor, forward_s: float) -> Sample:
    value, call = record_input(network, block.name, x)
    with torch.no_grad():
        target = call.run(network.get_submodule(block.name), value)
    return Sample(network, block, value, call, target, forward_s)


def _give_up_weights(networks: Sequence[nn.Module], samples: Sequence[Sample]) -> int:
    """Free all parameters but those of the samples' blocks; returns their bytes."""
    kept = {id(p) for s in samples for p in s.network.get_submodule(s.block.name).parameters()}
    freed = 0
    for parameter in {id(p): p for network in networks for p in network.parameters()}.values():
        if id(parameter) not in kept:
            freed += parameter.numel() * parameter.element_size()
            parameter.data = parameter.data.new_empty(0)
    return freed


def _measure(sample: Sample, all_layers: Any, crops: Crops, recipe: Recipe) -> MeasuredBlock:
    """Calibrate one block for a few steps, on the input that noise gives it."""
    network, block, value, call, target = sample.network, sample.block, sample.value, sample.call, sample.target
    method = recipe.stages
    layers = {site: all_layers[site] for site in block.sites}
    start = time.perf_counter()
    probes, *passing = probe_chunks(crops.train_indices, crops.guard_indices, crops.train[0].shape[-1])
    kept = [value.expand(len(chunk), *value.shape[1:]) for chunk in probes]
    # What only passes by costs a forward pass each; here all are the same.
    given = (kept, *([kept[0] for _ in chunks] for chunks in passing))
    initialize_block(network, block, tuple(layers.values()), call, given, start=method.start, seed=0)
    del given, kept
    initialized = time.perf_counter()
    trained = with_layers(network, layers).get_submodule(block.name)
    stages = method.block or method.joint or method.whole
    own = tuple(layers.values())
    batch = value.expand(recipe.training.batch, *value.shape[1:])

    def run(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.mixed):
            return (call.run(trained, inputs).float() - target).square().mean()

    step_s = 0.0
    for stage in stages:
        add_parameters(stage, own, 0)
        set_dynamic(own, stage.dynamic)
        rates = parameter_groups(stage, own, 1.0)
        phase = Phase(
            PhaseName("", block.name, stage.name), own, rates, MEASURED_STEPS, lambda *_: run(batch), lambda: 0.0
        )
        begun = time.perf_counter()
        train(phase, Journal(None, {}), 0, crops=[0], batch=1, report=lambda *_: None)
        step_s += (time.perf_counter() - begun) / MEASURED_STEPS * stage.share
    set_dynamic(own, False)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (value, target))
    return MeasuredBlock(
        block.name, sample.forward_s, initialized - start, step_s / sum(s.share for s in stages), size
    )
