"""Parameters and operations of a model, counted from its architecture alone: no weights are read.

The networks are instantiated on torch's meta device, which computes shapes and nothing else. Operations are twice
the multiply-accumulates of Conv2d and Linear; attention's matrix products, norms and activations are not counted,
as in the literature's compression tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from intsr.calib.models.families.adcsr import (
    ADCSR,
    PICTURE_CHANNELS,
    UPSCALE_FACTOR,
    AdcSRArchitecture,
    is_adcsr_folder,
)
from intsr.calib.models.families.adcsr_files import empty_networks, read_architecture
from intsr.calib.models.families.architecture import ARCHITECTURES, PROMPT_TOKENS, SD21, Architecture
from intsr.calib.models.families.published import FAMILIES
from intsr.calib.models.families.sd21_ldm import configs_from_ldm, without_wrapper
from intsr.calib.models.find import find_model
from intsr.calib.models.spec import read_settings
from intsr.calib.models.synth import base_shapes, lora_parameters
from intsr.calib.models.tensor_files import read_checkpoint
from intsr.calib.models.weights import read_configs
from intsr.errors import ModelError, UsageError
from intsr.types import Bits

FULL_PRECISION_BITS = 32
DEFAULT_SIZE_PX = 512


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """Parameters and multiply-accumulates (convolutions and Linear) of a network, for one picture or chunk of frames.

    components: the parts that a network is compiled in, where it is compiled in parts; their counts add up to
    the network's own. attention_macs: attention's two products, counted for video models, which are mostly that.
    """

    name: str
    parameters: int
    macs: int
    components: tuple[NetworkCost, ...] = ()
    attention_macs: int = 0

    @property
    def gops(self) -> float:
        """Operations in 1e9: a multiply-accumulate is two."""
        return 2 * self.macs / 1e9

    @property
    def attention_gops(self) -> float:
        return 2 * self.attention_macs / 1e9


@dataclass(frozen=True, slots=True)
class QuantizedCost:
    """32-bit equivalents: a number of b bits counts b/32. The ratios are quantized over full precision."""

    parameters: int
    gops: float
    ratio_parameters: float
    ratio_gops: float


def architecture_from_folder(folder: Path, name: str | None = None) -> Architecture:
    """Read unet/config.json, vae/config.json and, where there is one, intsr_model.json. Raises ModelError."""
    configs = read_configs(folder)
    settings = read_settings(folder, name or folder.resolve().name)
    tokens = tokens_from_context(folder / settings.context) if settings.context else PROMPT_TOKENS
    return Architecture(settings.name, configs["unet"], configs["vae"], tokens, settings.synthetic)


def architecture_from_file(path: Path) -> Architecture:
    """Read the architecture of a single file in ldm's format off its tensors' shapes. Raises ModelError."""
    checkpoint = read_checkpoint(path)
    tensors = without_wrapper(checkpoint.tensors)
    unet, vae = configs_from_ldm({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    return Architecture(path.stem, unet, vae)


def tokens_from_context(path: Path) -> int:
    """Second side of the tensor `context` (1, tokens, channels): from the file's header alone."""
    try:
        with safe_open(path, framework="np") as file:
            return int(file.get_slice("context").get_shape()[1])
    except (SafetensorError, OSError, IndexError) as error:
        got = f"no readable context ({error})"
        raise ModelError(path, got, "a tensor `context` (1, tokens, channels)") from error


def architecture_from_name(
    name: str | None, arch: str | None, family: str | None = None
) -> Architecture | AdcSRArchitecture:
    """The architecture of a model, as every command finds it, or of a known name or family: exactly one of them."""
    if [name, arch, family].count(None) != 2:
        got, fix = "neither or several of MODEL, --arch and --family", "for example intsr info --arch sd21"
        raise UsageError("info", got, "one of them", fix)
    if family is not None:
        return replace(SD21, name=FAMILIES[family].title) if family in FAMILIES else ADCSR
    if arch is not None:
        return ARCHITECTURES[arch]
    assert name is not None
    place = find_model(name, with_weights=False)
    if is_adcsr_folder(place.path):
        return read_architecture(place.path, place.name)
    return architecture_from_file(place.path) if place.is_file else architecture_from_folder(place.path, place.name)


def parameters_of_lora(family: str) -> int:
    """Count the numbers in a family's LoRA, for a base of SD 2.1's architecture; 0 where it publishes none."""
    return lora_parameters(FAMILIES[family], base_shapes(SD21)) if family in FAMILIES else 0


def costs_from_architecture(
    architecture: Architecture | AdcSRArchitecture, size_px: int = DEFAULT_SIZE_PX
) -> tuple[NetworkCost, ...]:
    """Count the UNet and the VAE (as encoder and decoder) for one square output picture of `size_px`.

    Raises ModelError where the configuration is not one that diffusers can build or run, UsageError where
    `size_px` is not a whole multiple of what the VAE divides it by.
    """
    if isinstance(architecture, AdcSRArchitecture):
        return _adcsr_costs(architecture, size_px)
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(architecture.unet))
            vae = AutoencoderKL.from_config(dict(architecture.vae))
        latent = torch.empty(_latent_shape(vae, size_px), device="meta")
        context = torch.empty((1, architecture.context_tokens, unet.config.cross_attention_dim), device="meta")
        picture = torch.empty((1, vae.config.in_channels, size_px, size_px), device="meta")
        halves = (
            _cost("encoder", (vae.encoder, vae.quant_conv), vae, lambda: vae.encode(picture)),
            _cost("decoder", (vae.decoder, vae.post_quant_conv), vae, lambda: vae.decode(latent)),
        )
        whole = _cost("unet", (unet,), unet, lambda: unet(latent, 0, encoder_hidden_states=context))
        return whole, replace(total_from_costs(halves), name="vae", components=halves)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        raise ModelError(architecture.name, f"cannot build this architecture ({str(error)[:300]})") from error


def _adcsr_costs(architecture: AdcSRArchitecture, size_px: int) -> tuple[NetworkCost, ...]:
    multiple = architecture.size_multiple_px
    if size_px < multiple or size_px % multiple:
        raise UsageError("--size", f"{size_px}", f"a positive multiple of {multiple}")
    side_px = size_px // UPSCALE_FACTOR
    unet, decoder = empty_networks(architecture).values()
    with torch.no_grad():
        picture = torch.empty((1, PICTURE_CHANNELS, side_px, side_px), device="meta")
        features = unet(picture)
    of_decoder = _cost("decoder", (decoder,), decoder, lambda: decoder(features))
    return _cost("unet", (unet,), unet, lambda: unet(picture)), replace(
        of_decoder, name="vae", components=(of_decoder,)
    )


def _latent_shape(vae: AutoencoderKL, size_px: int) -> tuple[int, int, int, int]:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if size_px < factor or size_px % factor:
        raise UsageError("--size", f"{size_px}", f"a positive multiple of {factor}, the VAE's downsampling")
    return (1, vae.config.latent_channels, size_px // factor, size_px // factor)


def _cost(
    name: str, modules: tuple[torch.nn.Module | None, ...], network: torch.nn.Module, forward: Callable[[], Any]
) -> NetworkCost:
    """Parameters of the modules, and multiply-accumulates of every Conv2d and Linear that `forward` passes through.

    Each output element of either takes as many as one output channel has weights.
    """
    macs = 0

    def add(layer: torch.nn.Conv2d | torch.nn.Linear, _: Any, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return NetworkCost(name, sum(p.numel() for module in modules if module for p in module.parameters()), macs)


def total_from_costs(costs: tuple[NetworkCost, ...]) -> NetworkCost:
    parameters, macs, attention = (
        sum(getattr(cost, name) for cost in costs) for name in ("parameters", "macs", "attention_macs")
    )
    return NetworkCost("total", parameters, macs, attention_macs=attention)


def quantize_cost(costs: tuple[NetworkCost, ...], bits: Bits, parts: tuple[str, ...]) -> QuantizedCost:
    """Count what is left in 32-bit equivalents when `parts` have `bits` and the rest stays in full precision.

    Parameters are stored in the weights' bits. An operation counts the wider of its two operands, as integer units
    multiply both at the same width; the papers only have equal bits, where this is their rule. Every parameter and
    operation of a part counts as quantized, biases, norms and layers that a method keeps at 8 bits included, as
    in the papers' tables.
    """
    weight_bits, activation_bits = bits.weights or FULL_PRECISION_BITS, bits.activations or FULL_PRECISION_BITS
    total = total_from_costs(costs)
    parameters, operations = 0.0, 0.0
    for cost in costs:
        quantized = cost.name in parts
        parameters += cost.parameters * (weight_bits / FULL_PRECISION_BITS if quantized else 1)
        operations += cost.gops * (max(weight_bits, activation_bits) / FULL_PRECISION_BITS if quantized else 1)
    return QuantizedCost(
        round(parameters), operations, parameters / total.parameters, operations / total.gops if total.gops else 1.0
    )
