"""Layers in the order in which a network runs them, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from intsr.calib.models.families.sd21 import BLOCK_ENDS, RESNET_LAYERS, STAGES, network_of_site
from intsr.types import NETWORKS


def graph_order(sites: Iterable[str]) -> list[str]:
    """Encoder, UNet, decoder; in each, blocks as they run. Sites of equal rank stay as they were."""
    return sorted(sites, key=_rank)


def _rank(site: str) -> tuple[int, ...]:
    network = NETWORKS.index(network_of_site(site))
    names = site.split(".")
    stage = next((STAGES.index(name) for name in names if name in STAGES), len(STAGES))
    numbers = [int(text) for text in re.findall(r"\.(\d+)(?=\.|$)", site)]
    in_mid = "mid_block" in names
    block = 0 if in_mid or not numbers else numbers[0]
    if any(name in BLOCK_ENDS for name in names):
        return (network, stage, block, 1, 0, 0, 0)
    index = next((int(names[i + 1]) for i, name in enumerate(names) if name in ("resnets", "attentions")), 0)
    attention = int("attentions" in names)
    # A middle block runs resnet 0, attention 0, resnet 1; others resnet and attention by turns: the same ranks.
    return (
        network,
        stage,
        block,
        0,
        index,
        attention,
        RESNET_LAYERS.index(names[-1]) if names[-1] in RESNET_LAYERS else 0,
    )


def short_name(site: str) -> str:
    """The site without what every name repeats."""
    text = re.sub(r"^(unet|vae\.encoder|vae\.decoder|vae)\.", "", site)
    text = text.replace("transformer_blocks.", "block ").replace("_blocks.", " ").replace("mid_block.", "mid ")
    text = text.replace("resnets.", "res ").replace("attentions.", "attn ").replace("samplers.0.", "sampler ")
    return text.replace(".", " ")
