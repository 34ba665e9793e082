"""Which layers a method quantizes, and at how many bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

# Kept at 8 bits whatever is asked for (METHODS section 2, "Forced to 8 bits").
EIGHT_BIT_SITES = frozenset(
    (
        "unet.time_embedding.linear_1",
        "unet.conv_out",
        "vae.quant_conv",
        "vae.post_quant_conv",
        "vae.encoder.conv_out",
        "vae.decoder.conv_out",
    )
)

# Layers with fewer input or output channels stay float in every engine. They are under 2 % of the operations, an
# integer kernel pads their channels and gains nothing, and the picture's own 8-bit levels lie half-way between the
# codes of any grid on [-1, 1] that holds 0, so that quantizing the first layer's input would round every pixel.
MIN_INTEGER_CHANNELS = 16


# Engines keep the posterior's mean alone: half of this layer's outputs.
HALVED_SITE = "vae.quant_conv"


def runs_in_integers(layer: nn.Conv2d | nn.Linear, site: str = "") -> bool:
    """Whether engines run this layer, once calibrated, on integers. site: for a layer that is not specialized yet."""
    rows, columns = layer.weight.shape[:2]
    return min(rows // 2 if site == HALVED_SITE else rows, columns) >= MIN_INTEGER_CHANNELS


def is_constant(site: str) -> bool:
    """Whether the fixed timestep or context makes the layer a constant that no engine computes."""
    owner, _, name = site.rpartition(".")
    if site.startswith("unet.time_embedding.") or name == "time_emb_proj":
        return True
    return owner.endswith(".attn2") and name in ("to_k", "to_v")


def integer_sites(model: SRModel, parts: tuple[str, ...]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The sites of `sites_of_model` that engines run on integers: what training is about."""
    return {
        site: layer
        for site, layer in sites_of_model(model, parts).items()
        if runs_in_integers(layer, site) and not is_constant(site)
    }


# Samplers, shortcuts, projections out of a transformer, the layers beside the latents: no norm is in front of them.
BARE_STREAM = ("conv_shortcut", "samplers.0.conv", "proj_out", "quant_conv")


def reads_bare_stream(site: str) -> bool:
    """Whether the layer is given the residual stream itself, as far as it reaches."""
    return site.endswith(BARE_STREAM)


def network_of_site(site: str) -> str:
    """encoder, unet or decoder."""
    if site.startswith("unet."):
        return "unet"
    return "encoder" if site.startswith(("vae.encoder.", "vae.quant_conv")) else "decoder"


def part_of_network(network: str) -> str:
    """Return the part of the model, unet or vae, that encoder, unet or decoder belongs to."""
    return "unet" if network == "unet" else "vae"


def concat_boundaries(unet: nn.Module) -> dict[str, int]:
    """Sites whose input starts with a skip concatenation -> channels in front of the seam.

    Up blocks take their skips from the end of: conv_in, then each down block's layers and its downsampler.
    """
    parts: Any = unet
    skips = [parts.conv_in.out_channels]
    for block in parts.down_blocks:
        skips += [resnet.out_channels for resnet in block.resnets]
        skips += [sampler.out_channels for sampler in block.downsamplers or ()]
    boundaries = {}
    for i, block in enumerate(parts.up_blocks):
        for j, resnet in enumerate(block.resnets):
            boundary = resnet.in_channels - skips.pop()
            for name in ("conv1", "conv_shortcut"):
                if getattr(resnet, name) is not None:
                    boundaries[f"unet.up_blocks.{i}.resnets.{j}.{name}"] = boundary
    return boundaries


def sites_of_model(model: SRModel, parts: tuple[str, ...]) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear of the parts (`unet`, `vae`) by site name, in module order."""
    networks = {"unet": model.unet, "vae": model.vae}
    return {
        f"{part}.{name}": module
        for part in parts
        for name, module in networks[part].named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def bits_of_site(site: str, bits: Bits) -> tuple[int, int]:
    """(weight bits, activation bits) of one site."""
    assert bits.weights is not None and bits.activations is not None
    return (8, 8) if site in EIGHT_BIT_SITES else (bits.weights, bits.activations)


def input_groups(sites: Iterable[str]) -> list[tuple[str, ...]]:
    """Sites that see the same tensor, together: q, k and v of self-attention. Every site is in exactly one group."""
    sites = list(sites)
    groups: dict[str, list[str]] = {}
    for site in sites:
        owner, _, name = site.rpartition(".")
        # Cross-attention's k and v see the context, its q something else.
        shared = name in ("to_q", "to_k", "to_v") and not owner.endswith("attn2")
        groups.setdefault(f"{owner}.qkv" if shared else site, []).append(site)
    return [tuple(group) for group in groups.values()]
