"""The UNet and the VAE as torch modules, from the tensors of a file: nothing missing, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intsr.calib.models.families.architecture import current_name
from intsr.calib.models.families.sd21_ldm import network_from_ldm, without_wrapper
from intsr.calib.models.families.supported import check_channels, unsupported
from intsr.calib.models.lora import Lora, merge_lora
from intsr.calib.models.spec import read_json
from intsr.calib.models.tensor_files import as_model_error
from intsr.calib.models.weight_files import tensors_of_file
from intsr.errors import ModelError

PARTS = ("unet", "vae")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
SHOWN = 3


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """The place of a network's weights. path: a file, or the index of several.

    is_ldm: both networks are in one file, under ldm's names.
    """

    part: str
    config: Mapping[str, Any]
    path: Path
    is_ldm: bool = False


def check_config(part: str, config: Mapping[str, Any], where: Path) -> None:
    """Raises ModelError for a configuration that is not of SD 2.1's kind."""
    name = config.get("_class_name", CLASSES[part])
    if name != CLASSES[part]:
        raise ModelError(where, f"class {name}", CLASSES[part])
    if config.get("addition_embed_type") == "text_time":
        raise ModelError(where, "an SDXL UNet", "SD 2.1's: one text encoder, no added embeddings")
    if part == "vae" and not (config.get("use_quant_conv", True) and config.get("use_post_quant_conv", True)):
        raise ModelError(where, "no quant_conv", "an AutoencoderKL with quant_conv and post_quant_conv")
    problem = unsupported(part, config)
    if problem is not None:
        raise ModelError(where, *problem)


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read and check the configurations of both networks of a folder, by part. Raises ModelError."""
    configs = {part: read_json(folder / part / "config.json") for part in PARTS}
    for part, config in configs.items():
        check_config(part, config, folder / part / "config.json")
    check_channels(configs["unet"], configs["vae"], folder)
    return configs


def empty_network(part: str, config: Mapping[str, Any], where: Path) -> Any:
    """The module on torch's meta device: shapes and no memory. Raises ModelError."""
    import diffusers

    with as_model_error(where), torch.device("meta"):
        return getattr(diffusers, CLASSES[part]).from_config(dict(config))


def load_network(source: NetworkSource, lora: Lora | None = None) -> Any:
    """The module in float32, evaluation mode, gradients off.

    Float32 tensors stay mapped from the file, others are converted one by one: never two copies. Raises ModelError.
    """
    network = empty_network(source.part, source.config, source.path)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    tensors = tensors_of_file(source.path)
    if source.is_ldm:
        weights = network_from_ldm(source.part, without_wrapper(tensors), source.config, source.path)
    else:
        weights = {current_name(name): tensor for name, tensor in tensors.items()}
    for name, tensor in weights.items():
        # The 1x1 convolutions of ldm's attention are linears here.
        if name in expected and tensor.shape != expected[name] and tensor.shape[:2] == expected[name]:
            weights[name] = tensor.reshape(expected[name])
    _check_names(source, expected, weights)
    if lora is not None:
        merge_lora(lora, source.part, weights)
    for name in list(weights):
        weights[name] = weights[name].float()
    network.load_state_dict(weights, strict=True, assign=True)
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        got = f"NaN or infinity in {broken[0]} and {len(broken) - 1} more"
        raise ModelError(source.path, got, "finite weights")
    return network.eval().requires_grad_(False)


def _check_names(
    source: NetworkSource, expected: Mapping[str, torch.Size], weights: Mapping[str, torch.Tensor]
) -> None:
    """Raises ModelError that names the first few of what is missing, too much, or of another shape."""
    wrong = [
        f"{name} {tuple(weights[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    problems = {
        "missing": sorted(set(expected) - set(weights)),
        "unknown": sorted(set(weights) - set(expected)),
        "of another shape": wrong,
    }
    told = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in problems.items()
        if names
    ]
    if told:
        got = f"{source.part}: tensors {', '.join(told)}"
        raise ModelError(source.path, got, "exactly what the configuration says", "give the whole, matching file")
