"""Train some learned numbers for some steps: what every phase of every method has in common.

Adam, a rate that falls along a cosine, gradients zeroed at every step, the best parameters by held-out pictures kept.
The batch of a step depends on the seed, the phase and the step alone, so that a resumed run sees the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.journal import Journal
from intsr.errors import CalibrationError, UsageError

EVALUATIONS = 4
LAST_RATE = 0.05
MODEL_PREFIX = "layer."  # of a QuantizedLayer's tensors: the model's weight and bias

CACHES = ("ram", "disk", "none")

Report = Callable[[PhaseName, int, float], None]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How much is trained, and how. Raises ValueError, UsageError for what cannot be."""

    # Of each block's stages together, and of each network's.
    block_steps: int = 12
    joint_steps: int = 120
    # Crops a step.
    batch: int = 4
    # A factor on every learning rate.
    rate: float = 1.0
    # Where a block's inputs are kept, one of CACHES: see `block_data`.
    cache: str = "ram"
    # Whether activations of joint steps are computed twice instead of kept.
    recompute: bool = False
    # bfloat16 where autocast says so.
    mixed: bool = False

    def __post_init__(self) -> None:
        if min(self.block_steps, self.joint_steps) < 0 or self.batch < 1 or not 0 < self.rate < 100:
            raise ValueError("steps must be 0 or more, batch 1 or more, rate between 0 and 100")
        if self.cache not in CACHES:
            raise UsageError("--cache", repr(self.cache), f"one of {', '.join(CACHES)}")


class Learner(Protocol):
    """A layer that learns: its state's `layer.` tensors are the model's own."""

    site: str

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage of one block, or of a whole network."""

    name: PhaseName
    # Whose learned numbers it may change.
    layers: tuple[Learner, ...]
    # Parameters and their learning rates.
    rates: tuple[tuple[tuple[nn.Parameter, ...], float], ...]
    steps: int
    # (indices of training crops, step) -> scalar.
    loss: Callable[[Sequence[int], int], torch.Tensor]
    # Of the crops that are not trained on.
    held_out_loss: Callable[[], float]


def _own_tensors(layers: Sequence[Learner]) -> dict[str, torch.Tensor]:
    """Return the tensors that calibration set, not copied; the model's own weights are not among them."""
    return {
        f"{layer.site}:{name}": value
        for layer in layers
        for name, value in layer.state_dict().items()
        if not name.startswith(MODEL_PREFIX)
    }


def learned_state(layers: Sequence[Learner]) -> dict[str, torch.Tensor]:
    """Everything of the layers that calibration set, copied."""
    return {key: value.detach().clone() for key, value in _own_tensors(layers).items()}


@torch.no_grad()
def restore_state(layers: Sequence[Learner], state: dict[str, torch.Tensor]) -> None:
    """The inverse of `learned_state`. Raises CalibrationError where the tensors are not those of the layers."""
    own = _own_tensors(layers)
    if own.keys() != state.keys() or any(own[key].shape != state[key].shape for key in own):
        raise CalibrationError("resuming a calibration", "other tensors than this run's", fix="start with --restart")
    for key, value in own.items():
        value.copy_(state[key])


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate, 1 falling to LAST_RATE."""
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))


def batch_at(seed: int, phase: str, step: int, crops: Sequence[int], batch: int) -> list[int]:
    """`batch` different ones of `crops`."""
    digest = hashlib.sha256(f"{seed} {phase} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return [crops[i] for i in torch.randperm(len(crops), generator=generator)[:batch].tolist()]


@dataclass(slots=True)
class _Progress:
    step: int
    best_loss: float
    best: dict[str, torch.Tensor]
    curve: list[list[float]]

    def saved(self, layers: Sequence[Learner], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "best": self.best,
            "curve": self.curve,
            "layers": learned_state(layers),
            "optimizer": optimizer.state_dict(),
        }


def train(
    phase: Phase, journal: Journal, seed: int, *, crops: Sequence[int], batch: int, report: Report
) -> list[list[float]]:
    """Run the phase, from its checkpoint where there is one. Returns the curve: [step, loss, held-out loss], ...

    crops: indices of those trained on. Raises CalibrationError where a loss is not finite.
    """
    name = str(phase.name)
    parameters = [{"params": list(group), "lr": rate} for group, rate in phase.rates]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    saved = journal.in_progress(name)
    if saved is None:
        first = _finite(phase.held_out_loss(), name)
        progress = _Progress(0, first, learned_state(phase.layers), [[0, first, first]])
    else:
        restore_state(phase.layers, saved["layers"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = _Progress(saved["step"], saved["best_loss"], saved["best"], saved["curve"])
    every = max(1, phase.steps // EVALUATIONS)
    while progress.step < phase.steps:
        for group, (_, rate) in zip(optimizer.param_groups, phase.rates, strict=True):
            group["lr"] = rate * rate_at(progress.step, phase.steps)
        optimizer.zero_grad(set_to_none=True)
        loss = phase.loss(batch_at(seed, name, progress.step, crops, batch), progress.step)
        loss.backward()
        value = _finite(float(loss.detach()), name)
        optimizer.step()
        progress.step += 1
        report(phase.name, 1, value)
        if progress.step % every == 0 or progress.step == phase.steps:
            held_out = _finite(phase.held_out_loss(), name)
            progress.curve.append([progress.step, value, held_out])
            if held_out < progress.best_loss:
                progress.best_loss, progress.best = held_out, learned_state(phase.layers)
        if journal.checkpoint_due():
            journal.checkpoint(name, progress.saved(phase.layers, optimizer))
    restore_state(phase.layers, progress.best)
    return progress.curve


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise CalibrationError(name, f"a loss of {value}", "a finite loss", "lower --rate, or check the pictures")
    return value
