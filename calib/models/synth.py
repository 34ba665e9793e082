"""Models of random weights, of any architecture: real shapes, real layout on disk, no pictures worth looking at.

They are for measuring speed and memory. Every tensor has a seed of its own (the model's and its name), so that the
same seed gives the same bytes whatever else is in the model. Norms, biases and residual branches are such that
activations stay finite and of ordinary size, fp16 included, from the first layer to the last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from intsr.calib.models.families.adcsr import AdcSRArchitecture
from intsr.calib.models.families.adcsr_files import empty_parts, write_published
from intsr.calib.models.families.architecture import SD21, SD21_SCHEDULER, Architecture
from intsr.calib.models.families.family import Family
from intsr.calib.models.families.wan import WAN_SCHEDULER, VideoArchitecture
from intsr.calib.models.prompt import CONTEXT_NAME
from intsr.calib.models.save import NetworkFiles, write_model
from intsr.calib.models.spec import SPEC_SCHEMA_VERSION, ModelSettings, default_settings
from intsr.calib.models.tensor_files import SAFETENSORS_SUFFIX
from intsr.calib.models.video_spec import VideoSettings
from intsr.calib.models.weights import empty_network
from intsr.errors import UsageError
from intsr.files import atomic_folder, atomic_path, check_free_space
from intsr.types import SYNTHETIC_NOTE

STORED_BYTES, PUBLISHED_BYTES = 2, 4  # fp16, and float32 in what families publish
# A video transformer's weights are divided into files of so many at most; a picture model's networks are whole.
SHARD_BYTES = 1 << 29
# DOVE's, the one-step video model whose numbers are published.
VIDEO_TIMESTEP = 399
# Deviation of what is no weight matrix: enough that a lost bias or a swapped norm shows.
SMALL = 0.05
# Last layers of residual branches: what a branch adds stays below what it is added to.
BRANCH_ENDS = (
    *("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight"),
    *("ffn.net.2.weight", "attentions.0.proj.weight"),
)
BRANCH_GAIN = 0.5
# At t = 999 an error in what the UNet predicts is 14.6 times as large in the denoised latents.
PREDICTION, PREDICTION_GAIN = "unet.conv_out.weight", 1 / 14.6
# Nothing is subtracted from what AdcSR's decoder makes: so pictures stay within [-1, 1], where they are not clipped.
ADCSR_PICTURE, ADCSR_PICTURE_GAIN = "vae.decoder.conv_out.weight", 0.25


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """The model that was written. parameters: by network. size_bytes: of the weights' files."""

    folder: Path
    name: str
    seed: int
    parameters: dict[str, int]
    size_bytes: int


def write_synthetic_model(
    architecture: Architecture | VideoArchitecture,
    folder: Path,
    seed: int = 0,
    on_network: Callable[[str], None] = lambda name: None,
) -> SyntheticModel:
    """Write a model folder in diffusers' layout, in one piece, with a context and `intsr_model.json`.

    At most one network of a picture model, or one file of a video model, is held, in fp16. on_network: told each
    one's name as it begins. Raises UsageError where the folder exists or the disk has no room.
    """
    configs = architecture.networks
    networks = {part: empty_network(part, config, folder) for part, config in configs.items()}
    parameters = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    check_free_space(folder, STORED_BYTES * sum(parameters.values()))
    name = f"{architecture.name}-random-{seed}"
    is_video = isinstance(architecture, VideoArchitecture)
    shape = (1, architecture.context_tokens, architecture.context_channels)

    def files() -> Iterator[NetworkFiles]:
        for part, network in networks.items():
            on_network(part)
            shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
            parts = _shards(shapes) if is_video else [shapes]
            yield part, configs[part], [partial(_random_tensors, part, shard, seed) for shard in parts]

    scheduler = WAN_SCHEDULER if is_video else SD21_SCHEDULER
    context = _normal("context", shape, seed)
    size_bytes = write_model(folder, _settings(name, is_video), files(), context, scheduler)
    return SyntheticModel(folder, name, seed, parameters, size_bytes)


@dataclass(frozen=True, slots=True)
class SyntheticLora:
    """The LoRA that was written. size_bytes: of its file, or its folder's files."""

    path: Path
    family: str
    seed: int
    parameters: int
    size_bytes: int


def write_synthetic_lora(
    family: Family, path: Path, seed: int = 0, architecture: Architecture = SD21
) -> SyntheticLora:
    """Write a file, or folder, in the format that the family's authors publish, for a base of that architecture.

    In one piece, in float32. Raises UsageError where there is something, the name is of another format, or the disk
    has no room.
    """
    shapes = base_shapes(architecture)
    parameters = lora_parameters(family, shapes)
    if path.exists():
        raise UsageError(path, "already exists", "a new name")
    if path.suffix == SAFETENSORS_SUFFIX and not family.is_folder:
        got, expected = f"suffix {SAFETENSORS_SUFFIX}", f"a pickle's, as {family.published} is"
        raise UsageError(path, got, expected, "make one of it with intsr convert")
    check_free_space(path.parent, PUBLISHED_BYTES * parameters)
    content = family.make(shapes, lambda name, shape: random_tensor(name, shape, seed))
    with (atomic_folder if family.is_folder else atomic_path)(path, overwrite=False) as temporary:
        family.save(temporary, content)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return SyntheticLora(path, family.name, seed, parameters, sum(file.stat().st_size for file in files))


def base_shapes(architecture: Architecture) -> dict[str, Shapes]:
    """Part -> parameter -> shape."""
    networks = {part: empty_network(part, config, Path(part)) for part, config in architecture.networks.items()}
    return {part: {k: tuple(t.shape) for k, t in net.state_dict().items()} for part, net in networks.items()}


def lora_parameters(family: Family, shapes: Mapping[str, Shapes]) -> int:
    """Count the numbers in a family's file for a base of these shapes; none of them is made."""
    return _count(family.make(shapes, lambda _, shape: torch.empty(shape, device="meta")))


def _count(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.numel()
    return sum(map(_count, content.values())) if isinstance(content, Mapping) else 0


def write_synthetic_adcsr(
    architecture: AdcSRArchitecture,
    folder: Path,
    seed: int = 0,
    on_network: Callable[[str], None] = lambda name: None,
) -> SyntheticModel:
    """Write AdcSR's two files, float32 as they are published, in one piece, marked as random.

    All of the weights are held. Raises UsageError where the folder exists or the disk has no room.
    """

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = random_tensor(name, shape, seed)
        return tensor * ADCSR_PICTURE_GAIN if name == ADCSR_PICTURE else tensor

    parameters = {
        part: sum(p.numel() for p in network.parameters()) for part, network in empty_parts(architecture).items()
    }
    check_free_space(folder, PUBLISHED_BYTES * sum(parameters.values()))
    on_network(architecture.name)
    write_published(architecture, folder, make)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return SyntheticModel(folder, f"{architecture.name}-random-{seed}", seed, parameters, size_bytes)


def _settings(name: str, is_video: bool) -> ModelSettings | VideoSettings:
    common: dict[str, Any] = {"context": CONTEXT_NAME, "licence": SYNTHETIC_NOTE, "synthetic": True}
    if is_video:
        return VideoSettings(SPEC_SCHEMA_VERSION, name, VIDEO_TIMESTEP, 4, "bicubic", **common)
    return replace(default_settings(name), **common)


def _shards(shapes: Shapes) -> list[Shapes]:
    """Divide a network's tensors, in order, into files of at most SHARD_BYTES, or of one tensor."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size_bytes = 0
    for name, shape in shapes.items():
        own = STORED_BYTES * math.prod(shape)
        if shards[-1] and size_bytes + own > SHARD_BYTES:
            shards.append({})
            size_bytes = 0
        shards[-1][name] = shape
        size_bytes += own
    return list(shards)


def _random_tensors(part: str, shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    return {key: random_tensor(f"{part}.{key}", shape, seed).half() for key, shape in shapes.items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Float32. Norms near 1, biases near 0, weights of gain 1 over their inputs, less at the end of a branch."""
    values = _normal(name, shape, seed)
    owner, _, kind = name.rpartition(".")
    if len(shape) == 1 or kind == "gamma":
        scales = kind in ("weight", "gamma") and "norm" in owner.rpartition(".")[2]
        return values.mul_(SMALL).add_(1.0 if scales else 0.0)
    gain = PREDICTION_GAIN if name == PREDICTION else BRANCH_GAIN if name.endswith(BRANCH_ENDS) else 1.0
    return values.mul_(gain / math.sqrt(math.prod(shape[1:])))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator)
