"""A model's networks as torch modules: which files hold their weights, and of those nothing missing, nothing left.

What lies where weights should is told as what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intsr.calib.models.families import adcsr_files
from intsr.calib.models.families.adcsr import is_adcsr
from intsr.calib.models.families.architecture import current_name
from intsr.calib.models.families.family import Lora
from intsr.calib.models.families.sd21_ldm import network_from_ldm, without_wrapper
from intsr.calib.models.families.supported import check_channels, unsupported
from intsr.calib.models.families.wan import (
    VIDEO_CLASSES,
    VIDEO_PARTS,
    check_video_channels,
    check_video_config,
    current_video_names,
    put_rope,
)
from intsr.calib.models.lora import merge_lora
from intsr.calib.models.spec import read_json
from intsr.calib.models.tensor_files import (
    CHECKPOINT_SUFFIXES,
    SAFETENSORS_SUFFIX,
    SHOWN,
    as_model_error,
    check_is_data,
    check_names,
    read_checkpoint,
)
from intsr.errors import ModelError

PARTS = ("unet", "vae")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# As diffusers calls the lists of what it has divided.
INDEX_FILES = tuple(f"{WEIGHT_FILES[0]}.index{variant}.json" for variant in ("", ".fp16"))
_SHARD = re.compile(r"-\d+-of-\d+\.")


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """The place of a network's weights. path: a file, the index of several, or AdcSR's folder.

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


def is_video_folder(folder: Path) -> bool:
    """Tell whether the folder's denoiser is a transformer, of whatever make, and no UNet."""
    return (folder / "transformer" / "config.json").is_file()


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read and check the configurations of both networks of a folder, by part. Raises ModelError."""
    if is_video_folder(folder):
        read_video_configs(folder)
        got = f"a video transformer: {VIDEO_CLASSES['transformer']}"
        fix = "of video models there are intsr info, synth, calibrate, export, compile, verify and bench"
        raise ModelError(folder, got, "a picture model, with unet/ and vae/", fix)
    configs = {part: read_json(folder / part / "config.json") for part in PARTS}
    for part, config in configs.items():
        check_config(part, config, folder / part / "config.json")
    check_channels(configs["unet"], configs["vae"], folder)
    return configs


def read_video_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read and check the configurations of a video model's transformer and VAE, by part. Raises ModelError."""
    configs = {part: read_json(folder / part / "config.json") for part in VIDEO_PARTS}
    for part, config in configs.items():
        check_video_config(part, config, folder / part / "config.json")
    check_video_channels(configs["transformer"], configs["vae"], folder)
    return configs


def class_name(part: str, config: Mapping[str, Any]) -> str:
    """Return the name of diffusers' class: what the configuration says, or a picture model's."""
    return str(config.get("_class_name") or CLASSES[part])


def sources_of_folder(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], parts: Sequence[str] = PARTS
) -> dict[str, NetworkSource]:
    """The networks of a folder in diffusers' layout, by part. Raises ModelError for a part without weights."""
    return {part: NetworkSource(part, configs[part], weights_file(folder / part)) for part in parts}


def sources_of_ldm(path: Path, configs: Sequence[Mapping[str, Any]]) -> dict[str, NetworkSource]:
    """The networks of a single file, by part. configs: of the UNet and the VAE."""
    return {part: NetworkSource(part, config, path, is_ldm=True) for part, config in zip(PARTS, configs, strict=True)}


def sources_of_adcsr(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, NetworkSource]:
    """The networks of AdcSR's two files, by part."""
    return {part: NetworkSource(part, config, folder) for part, config in configs.items()}


def empty_network(part: str, config: Mapping[str, Any], where: Path) -> Any:
    """The module on torch's meta device: shapes and no memory. Raises ModelError."""
    import diffusers

    with as_model_error(where), torch.device("meta"):
        if is_adcsr(config):
            return adcsr_files.MAKERS[part](config)
        return getattr(diffusers, class_name(part, config)).from_config(dict(config))


def load_network(source: NetworkSource, lora: Lora | None = None) -> Any:
    """The module in float32, evaluation mode, gradients off.

    Float32 tensors stay mapped from the file, others are converted one by one: never two copies. Raises ModelError.
    """
    network = empty_network(source.part, source.config, source.path)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    weights = _weights_of(source)
    for name, tensor in weights.items():
        # The 1x1 convolutions of ldm's attention are linears here.
        if name in expected and tensor.shape != expected[name] and tensor.shape[:2] == expected[name]:
            weights[name] = tensor.reshape(expected[name])
    check_names(source.path, source.part, expected, {name: tensor.shape for name, tensor in weights.items()})
    if lora is not None:
        merge_lora(lora, source.part, weights)
    for name in list(weights):
        weights[name] = weights[name].float()
    network.load_state_dict(weights, strict=True, assign=True)
    if source.part == "transformer":
        put_rope(network)
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        got = f"NaN or infinity in {broken[0]} and {len(broken) - 1} more"
        where = source.path if lora is None else f"{source.path} with {lora.path}"
        raise ModelError(where, got, "finite weights")
    return network.eval().requires_grad_(False)


def _weights_of(source: NetworkSource) -> dict[str, torch.Tensor]:
    """Tensors by the names of the network's module."""
    if is_adcsr(source.config):
        return adcsr_files.read_weights(source.part, source.path)
    tensors = tensors_of_file(source.path)
    if source.is_ldm:
        return network_from_ldm(source.part, without_wrapper(tensors), source.config, source.path)
    if source.part == "transformer":
        return current_video_names(tensors)
    return {current_name(name): tensor for name, tensor in tensors.items()}


def weights_file(folder: Path) -> Path:
    """The safetensors file of a part's folder, or the index of several. Raises ModelError."""
    path = next((folder / name for name in (*WEIGHT_FILES, *INDEX_FILES) if (folder / name).is_file()), None)
    if path is None:
        raise no_weights(folder, WEIGHT_FILES)
    for file in files_of(path):
        check_is_data(file)
    return path


def no_weights(folder: Path, expected: Sequence[str]) -> ModelError:
    """For a folder with none of the `expected` files: what is there instead, and what makes the first of it."""
    others = sorted(path.name for path in folder.glob("*") if path.suffix in CHECKPOINT_SUFFIXES and path.is_file())
    wanted = " or ".join(expected)
    if not others:
        return ModelError(folder, "no weights", wanted)
    got = f"no weights but {', '.join(f'{name} ({_kind(name)})' for name in others[:SHOWN])}"
    if _SHARD.search(others[0]):
        fix = "get the index that belongs to them" if others[0].endswith(SAFETENSORS_SUFFIX) else "join them first"
        return ModelError(folder, got, wanted, fix)
    return ModelError(folder, got, wanted, f"intsr convert {folder / others[0]} -o {folder / expected[0]}")


def _kind(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if _SHARD.search(name):
        return "one of several files, without their index"
    if f".{suffix}" != SAFETENSORS_SUFFIX:
        return "a pickle"
    return f"the variant {stem.partition('.')[2]}" if "." in stem else "another name"


def shards_of_index(index: Path) -> dict[str, set[str]]:
    """Name of each file -> the tensors that it should hold. Raises ModelError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(index, "no weight_map", "names of tensors and the files that hold them")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(SAFETENSORS_SUFFIX):
            raise ModelError(index, f"{shard!r} for {name}", f"the name of a {SAFETENSORS_SUFFIX} file beside it")
        shards.setdefault(shard, set()).add(name)
    return shards


def files_of(path: Path) -> tuple[Path, ...]:
    """The file itself, or those that an index names, or AdcSR's. Raises ModelError."""
    if path.is_dir():
        return adcsr_files.files_of_folder(path)
    if path.name not in INDEX_FILES:
        return (path,)
    return tuple(path.parent / shard for shard in shards_of_index(path))


def tensors_of_file(path: Path) -> dict[str, torch.Tensor]:
    """Read one file, or all that an index names; tensors are mapped where possible. Raises ModelError."""
    if path.name not in INDEX_FILES:
        return dict(read_checkpoint(path).tensors)
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in shards_of_index(path).items():
        own = read_checkpoint(path.parent / shard).tensors
        if set(own) != names:
            different = sorted(set(own) ^ names)
            got = f"{', '.join(different[:SHOWN])} and the like: not both in the index and in {shard}"
            raise ModelError(path, got, "an index and the files that belong to it")
        tensors |= own
    return tensors
