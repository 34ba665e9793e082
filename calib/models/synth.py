"""Models of random weights, of any architecture: real shapes, real layout on disk, no pictures worth looking at.

They are for measuring speed and memory. Every tensor has a seed of its own (the model's and its name), so that the
same seed gives the same bytes whatever else is in the model. Norms, biases and residual branches are such that
activations stay finite and of ordinary size, fp16 included, from the first layer to the last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from intsr.calib.models.families.architecture import SD21_SCHEDULER, Architecture
from intsr.calib.models.prompt import CONTEXT_NAME
from intsr.calib.models.save import NetworkFiles, write_model
from intsr.calib.models.spec import default_settings
from intsr.calib.models.weights import PARTS, empty_network
from intsr.files import check_free_space
from intsr.types import SYNTHETIC_NOTE

STORED_BYTES = 2  # fp16
# Deviation of what is no weight matrix: enough that a lost bias or a swapped norm shows.
SMALL = 0.05
# Last layers of residual branches: what a branch adds stays below what it is added to.
BRANCH_ENDS = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight")
BRANCH_GAIN = 0.5
# At t = 999 an error in what the UNet predicts is 14.6 times as large in the denoised latents.
PREDICTION, PREDICTION_GAIN = "unet.conv_out.weight", 1 / 14.6


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """The model that was written. parameters: by network. size_bytes: of the weights' files."""

    folder: Path
    name: str
    seed: int
    parameters: dict[str, int]
    size_bytes: int


def write_synthetic_model(
    architecture: Architecture, folder: Path, seed: int = 0, on_network: Callable[[str], None] = lambda name: None
) -> SyntheticModel:
    """Write a model folder in diffusers' layout, in one piece, with a context and `intsr_model.json`.

    At most one network is held, in fp16. on_network: told each one's name as it begins. Raises UsageError where the
    folder exists or the disk has no room.
    """
    networks = {part: empty_network(part, getattr(architecture, part), folder) for part in PARTS}
    parameters = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    check_free_space(folder, STORED_BYTES * sum(parameters.values()))
    name = f"{architecture.name}-random-{seed}"
    shape = (1, architecture.context_tokens, int(architecture.unet["cross_attention_dim"]))
    settings = replace(default_settings(name), context=CONTEXT_NAME, licence=SYNTHETIC_NOTE, synthetic=True)

    def files() -> Iterator[NetworkFiles]:
        for part, network in networks.items():
            on_network(part)
            shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
            weights = {key: random_tensor(f"{part}.{key}", size, seed).half() for key, size in shapes.items()}
            yield part, getattr(architecture, part), weights

    size_bytes = write_model(folder, settings, files(), _normal("context", shape, seed), SD21_SCHEDULER)
    return SyntheticModel(folder, name, seed, parameters, size_bytes)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Float32. Norms near 1, biases near 0, weights of gain 1 over their inputs, less at the end of a branch."""
    values = _normal(name, shape, seed)
    if len(shape) == 1:
        owner, _, kind = name.rpartition(".")
        return values.mul_(SMALL).add_(1.0 if kind == "weight" and "norm" in owner.rpartition(".")[2] else 0.0)
    gain = PREDICTION_GAIN if name == PREDICTION else BRANCH_GAIN if name.endswith(BRANCH_ENDS) else 1.0
    return values.mul_(gain / math.sqrt(math.prod(shape[1:])))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator)
