"""Which layers a method quantizes, and at how many bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.model import SRModel

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
