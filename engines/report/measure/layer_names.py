"""What a layer's name alone tells: when it runs, and why it is not integer. Needs nothing of the compiler."""

from __future__ import annotations

import re
from collections.abc import Iterable

from intsr.calib.models.families.sd21 import (
    BLOCK_ENDS,
    LATENT_SITES,
    PICTURE_SITES,
    RESNET_LAYERS,
    STAGES,
    network_of_site,
)

# As they run, of picture and video models.
REPORT_NETWORKS = ("encoder", "unet", "transformer", "decoder")
REASONS = {
    "constant": "Not in the engine: the fixed timestep and prompt make it a constant.",
    "picture": "Full precision: it reads or writes the picture itself, three channels.",
    "float": "Full precision: it reads or writes the latents, whose rounding shows, and costs next to nothing.",
    "builder": "The builder chose so.",
}


def graph_order(sites: Iterable[str]) -> list[str]:
    """In the order of REPORT_NETWORKS; in each, blocks as they run. Sites of equal rank stay as they were."""
    return sorted(sites, key=_rank)


def _rank(site: str) -> tuple[int, ...]:
    network = REPORT_NETWORKS.index(network_of_site(site))
    names = site.split(".")
    stage = next((STAGES.index(name) for name in names if name in STAGES), len(STAGES))
    numbers = [int(text) for text in re.findall(r"\.(\d+)(?=\.|$)", site)]
    in_mid = "mid_block" in names
    block = 0 if in_mid or not numbers else numbers[0]
    if any(name in BLOCK_ENDS for name in names):
        return (network, stage, block, 1, 0, 0, 0)
    index = next((int(names[i + 1]) for i, name in enumerate(names) if name in ("resnets", "attentions")), 0)
    layer = RESNET_LAYERS.index(names[-1]) if names[-1] in RESNET_LAYERS else 0
    # A middle block runs resnet 0, attention 0, resnet 1; others resnet and attention by turns: the same ranks.
    return (network, stage, block, 0, index, int("attentions" in names), layer)


def short_name(site: str) -> str:
    """The site without what every name repeats."""
    text = re.sub(r"^(unet|vae\.encoder|vae\.decoder|vae)\.", "", site)
    text = text.replace("transformer_blocks.", "block ").replace("_blocks.", " ").replace("mid_block.", "mid ")
    text = text.replace("resnets.", "res ").replace("attentions.", "attn ").replace("samplers.0.", "sampler ")
    return text.replace(".", " ")


def reason_of_site(site: str, runs: str) -> str:
    """Say why a calibrated layer stays float; '' if it is integer. runs: as `inspect_calibration` says."""
    if runs == "integer":
        return ""
    return REASONS["picture" if runs == "float" and site in PICTURE_SITES else runs]


def reason_of_engine_layer(name: str) -> str:
    """Say why an integer engine's plan has a layer in floating point."""
    if name in PICTURE_SITES:
        return REASONS["picture"]
    return REASONS["float" if name in LATENT_SITES else "builder"]
