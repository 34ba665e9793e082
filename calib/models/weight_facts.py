"""What a copy of a model holds, in a form that two people can compare: names, shapes, and a digest of the values.

Copies differ in their files (fp32 or fp16, one file or several, pickles, old names) and not in what they compute.
So the digest is of the tensors under diffusers' names of today, each rounded to fp16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from intsr.calib.models.families.adcsr import ADCSR, DEFAULTS, is_adcsr_folder
from intsr.calib.models.families.adcsr_files import read_architecture
from intsr.calib.models.families.architecture import ARCHITECTURES
from intsr.calib.models.families.sd21_ldm import configs_from_ldm, without_wrapper
from intsr.calib.models.find import find_model
from intsr.calib.models.tensor_files import read_checkpoint
from intsr.calib.models.weights import (
    NetworkSource,
    empty_network,
    load_network,
    read_configs,
    sources_of_adcsr,
    sources_of_folder,
    sources_of_ldm,
)


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """One network. layout: the known architecture with the same names and shapes; "" for none."""

    part: str
    tensors: int
    layout: str
    sha256_fp16: str


def weight_facts(name: str) -> Iterator[WeightFacts]:
    """Read every weight of a model, one network at a time, whatever its text encoder is. Raises ModelError."""
    place = find_model(name, needs_text=False)
    known = {arch: one.networks for arch, one in ARCHITECTURES.items()} | {DEFAULTS.family: ADCSR.networks}
    for source in (_file_sources(place.path) if place.is_file else _folder_sources(place.path)).values():
        tensors = load_network(source).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        same = (arch for arch, networks in known.items() if _shapes(source.part, networks) == shapes)
        yield WeightFacts(source.part, len(tensors), next(same, ""), _digest(tensors))


def _folder_sources(folder: Path) -> dict[str, NetworkSource]:
    if is_adcsr_folder(folder):
        return sources_of_adcsr(folder, read_architecture(folder, folder.name).networks)
    return sources_of_folder(folder, read_configs(folder))


def _file_sources(path: Path) -> dict[str, NetworkSource]:
    tensors = without_wrapper(read_checkpoint(path).tensors)
    return sources_of_ldm(path, configs_from_ldm({key: tuple(t.shape) for key, t in tensors.items()}, path))


def _shapes(part: str, networks: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[int, ...]]:
    network = empty_network(part, networks[part], Path(part))
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(json.dumps([key, list(tensor.shape)]).encode())
        digest.update(tensor.half().contiguous().numpy().tobytes())
    return digest.hexdigest()
