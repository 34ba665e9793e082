"""What every order of calibration does: starting a block's layers, and training one stage of some layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.data.crops import Crops
from intsr.calib.learn.blocks import ActivationStatistics, Block, Call, layer_statistics
from intsr.calib.learn.initialize import RangeInit, initialize
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import (
    Method,
    Stage,
    add_parameters,
    freeze,
    hard_rounding,
    parameter_groups,
    penalty,
    set_dynamic,
)
from intsr.calib.learn.perceptual import Distance, perceptual_distance
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers
from intsr.calib.learn.train import Phase, Report, TrainingOptions, learned_state, restore_state, train
from intsr.calib.models.reference import reference_networks
from intsr.errors import UsageError
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

CHUNK = 4
# Initialization looks at so many crops, and tries every range on as many of them as have so many pixels in all
# (enlarged): all 24 of 128x128. Of the others it takes the ends only.
PROBE_CROPS, PROBE_PX, PROBES_TRIED = 24, 24 * 128 * 128, 2
Curves = dict[str, list[list[float]]]
# (indices of crops) -> scalar.
Loss: TypeAlias = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the blocks and stages of one calibration share."""

    method: Method
    options: TrainingOptions
    seed: int
    journal: Journal
    report: Report
    crops: Crops
    # Of pictures, for the stages of all three networks.
    distance: Distance = perceptual_distance


def check_device(device: str) -> None:
    """Raises UsageError for a GPU that torch cannot use."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device", "cuda", "a GPU that torch can use", "install torch with CUDA, or --device cpu")


def on_device(
    model: SRModel, bits: Bits, parts: tuple[str, ...], run: Run, device: str
) -> tuple[dict[str, QuantizedLayer], dict[str, nn.Module], list[torch.Tensor]]:
    """Every integer layer of `parts`, not initialized; the reference networks; all crops. Raises UsageError."""
    check_device(device)
    layers = quantized_layers(model, bits, parts, **run.method.layer_settings)
    for layer in layers.values():
        layer.to(device)
    references = {name: network.to(device) for name, network in reference_networks(model).items()}
    return layers, references, [crop.to(device) for crop in run.crops.all]


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


def mean_square(tensors: Iterable[torch.Tensor]) -> float:
    """Mean over tensors of each one's mean square: what errors are relative to, above 0."""
    return max(float(torch.stack([tensor.square().mean() for tensor in tensors]).mean()), 1e-12)


@torch.no_grad()
def mean_loss(loss: Loss, indices: Sequence[int]) -> float:
    """Of a loss, over crops; CHUNK at a time."""
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    return sum(float(loss(chunk)) * len(chunk) for chunk in chunks) / len(indices)


def initialize_block(
    reference: nn.Module,
    block: Block,
    layers: Sequence[QuantizedLayer],
    call: Call,
    probes: Iterable[Iterable[torch.Tensor]],
    *,
    start: RangeInit,
    seed: int,
) -> dict[str, ActivationStatistics]:
    """Set every base of a block's layers by what the full-precision block gives them; returns that.

    probes: inputs of the block that are kept, that pass by, and the guard's (`layer_statistics`).
    """
    module = reference.get_submodule(block.name)
    plain = {site: reference.get_submodule(site) for site in block.sites}
    seen = layer_statistics(lambda x: call.run(module, x), plain, *probes, rotations=rotations_of(layers))
    initialize(layers, seen, start, seed)
    return seen


def run_stage(
    run: Run,
    name: PhaseName,
    stage: Stage,
    layers: tuple[QuantizedLayer, ...],
    *,
    steps: int,
    loss: Callable[[], Loss],
) -> Curves:
    """Train one stage, or restore what an earlier run has learned in it. loss: made where it is trained alone."""
    add_parameters(stage, layers, run.seed)
    done, restored = run.journal.step(str(name), lambda: _trained(run, name, stage, layers, steps=steps, loss=loss()))
    restore_state(layers, done["layers"])
    freeze(stage, layers)
    if restored:
        run.report(name, steps, done["curve"][-1][1])
    return {str(name): done["curve"]}


def _trained(
    run: Run, name: PhaseName, stage: Stage, layers: tuple[QuantizedLayer, ...], *, steps: int, loss: Loss
) -> dict[str, Any]:
    options = run.options

    def held_out_loss() -> float:
        with hard_rounding(layers):
            return mean_loss(loss, run.crops.held_out_indices)

    def with_penalty(indices: Sequence[int], step: int) -> torch.Tensor:
        return loss(indices) + penalty(stage, layers, step / steps)

    set_dynamic(layers, stage.dynamic)
    rates = parameter_groups(stage, layers, options.rate)
    phase = Phase(name, layers, rates, steps, with_penalty, held_out_loss)
    crops = run.crops.train_indices
    curve = train(phase, run.journal, run.seed, crops=crops, batch=options.batch, report=run.report)
    set_dynamic(layers, False)
    return {"layers": learned_state(layers), "curve": curve}


def rotations_of(layers: Iterable[QuantizedLayer]) -> dict[str, int]:
    """What `layer_statistics` rotates inputs by."""
    return {layer.site: layer.grid.spec.rotation for layer in layers}


def with_steps(stages: Sequence[Stage], steps: int) -> list[tuple[Stage, int]]:
    """Pair the stages with their steps; those with none are left out, also where they are restored."""
    shares = ((stage, round(steps * stage.share)) for stage in stages)
    return [(stage, own) for stage, own in shares if own]
