"""Stable Diffusion 2.1 by the names of its layers: what every stage has to know of the family, in one place.

A site is a Conv2d or Linear by its diffusers name below `unet.` or `vae.`. Nothing here needs torch or diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from intsr.types import Bits

# The layers beside the picture and the latents stay float in every engine. They are under 2 % of the operations, and
# in SD 2.1 have so few channels that an integer kernel pads them and gains nothing; everything that the picture is
# made of goes through the latents, whose rounding shows; and the picture's own 8-bit levels lie half-way between the
# codes of any grid on [-1, 1] that holds 0, so that quantizing the first layer's input would round every pixel.
PICTURE_SITES = ("vae.encoder.conv_in", "vae.decoder.conv_out")
LATENT_SITES = (
    "vae.encoder.conv_out",
    "vae.quant_conv",
    "unet.conv_in",
    "unet.conv_out",
    "vae.post_quant_conv",
    "vae.decoder.conv_in",
)
FLOAT_SITES = frozenset((*PICTURE_SITES, *LATENT_SITES))
# Specialization moves the latent scaling factor across this layer's input: x there is f times what it was.
POST_QUANT_CONV = "vae.post_quant_conv"
# Samplers, shortcuts, projections out of a transformer: no norm is in front of them.
BARE_STREAM = ("conv_shortcut", "samplers.0.conv", "proj_out")
# What is read of the VAE's residual stream, which no norm holds and which is the picture itself, on finer grids than
# asked for: of W6A6's error eight such layers made four fifths, and bits of activations cost neither size nor speed.
STREAM_BITS = 8
# What an activation function, attention or GEGLU is in front of.
ACTIVATED = ("conv1", "conv2", "conv_out", "to_out.0", "ff.net.2", "ffn.net.2")
# diffusers' classes whose modules are calibrated as one block; a layer outside of them is a block by itself.
BLOCK_CLASSES = (
    "ResnetBlock2D",
    "Transformer2DModel",
    "Attention",
    "Downsample2D",
    "Upsample2D",
    "PhaseUpsample2D",
    "WanTransformerBlock",
)
# Parts of a network, of a block's end and of a residual block, as diffusers runs them: the report's order.
STAGES = (
    "post_quant_conv",
    "conv_in",
    "time_embedding",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_norm_out",
    "conv_out",
    "quant_conv",
)
BLOCK_ENDS = ("downsamplers", "upsamplers")
RESNET_LAYERS = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")


@dataclass(frozen=True, slots=True)
class LetSink:
    """The place that x~ = (x - d) / s of some layers goes to, exactly and for nothing: what makes their x."""

    # Endings of the sites.
    ends: tuple[str, ...]
    # `norm`: gamma / s and (beta - d) / s, where all readers share s and d. `rows`: the producer's first rows / s,
    # where d is 0. `value`: the constant value / s, where d is 0. `none`: an elementwise step of its own.
    into: str
    # The module that makes x, in the place of the site's ending.
    maker: str = ""
    # Why it does not fold.
    why: str = ""


# The first entry with a site's ending is its own.
LET_SINKS = (
    LetSink((".attn1.to_q", ".attn1.to_k", ".attn1.to_v"), "norm", ".norm1"),
    LetSink((".attn1.to_out.0",), "rows", ".attn1.to_v"),
    LetSink((".attn2.to_q",), "norm", ".norm2"),
    LetSink((".attn2.to_k", ".attn2.to_v"), "none", why="the context makes it a constant"),
    LetSink((".attn2.to_out.0",), "value", ".attn2"),
    LetSink((".ff.net.0.proj",), "norm", ".norm3"),
    LetSink((".ff.net.2",), "rows", ".ff.net.0.proj"),
    # Wan's.
    LetSink((".ffn.net.0.proj",), "norm", ".norm3"),
    LetSink((".ffn.net.2",), "none", why="GELU is between the two layers"),
    LetSink((".proj_in",), "norm", ".norm"),
    LetSink((".to_q", ".to_k", ".to_v"), "norm", ".group_norm"),
    LetSink((".to_out.0",), "rows", ".to_v"),
    LetSink((".conv1", ".conv2", ".conv_out"), "none", why="SiLU is between the norm and the layer"),
    LetSink(("",), "none", why="other layers read the same residual stream"),
)


def let_sink(site: str) -> LetSink:
    """Return where this site's LET may go."""
    return next(sink for sink in LET_SINKS if site.endswith(sink.ends))


def let_readers(site: str) -> tuple[str, ...]:
    """Return the sites that read the norm which `site` reads with nothing between, itself included; else none."""
    sink = let_sink(site)
    if sink.into != "norm":
        return ()
    prefix = _without_end(site, sink)
    return tuple(prefix + end for end in sink.ends)


def let_maker(site: str) -> str:
    """Return the name of the module that makes this site's input, where its LET may go into that."""
    sink = let_sink(site)
    return _without_end(site, sink) + sink.maker


def _without_end(site: str, sink: LetSink) -> str:
    return next(site.removesuffix(end) for end in sink.ends if site.endswith(end))


def value_maker(site: str) -> str:
    """Return the site that makes what attention in front of `site` mixes, or "" where there is none."""
    sink = let_sink(site)
    return let_maker(site) if sink.maker.endswith(".to_v") else ""


def may_shift(site: str) -> bool:
    """Tell whether d may leave 0: not behind SiLU, where it would cost a padded copy and gain nothing, nor behind
    attention or GEGLU, where s folds into rows but d cannot.
    """
    return not site.endswith(ACTIVATED)


def is_constant(site: str) -> bool:
    """Tell whether the fixed timestep or context makes the layer a constant that no engine computes."""
    owner, _, name = site.rpartition(".")
    if site.startswith("unet.time_embedding.") or name == "time_emb_proj":
        return True
    return owner.endswith(".attn2") and name in ("to_k", "to_v")


def reads_bare_stream(site: str) -> bool:
    """Tell whether the layer is given the residual stream itself, as far as it reaches."""
    return site.endswith(BARE_STREAM)


def network_of_site(site: str) -> str:
    """Return encoder, unet or decoder, or transformer of a video model."""
    part = site.partition(".")[0]
    if part in ("unet", "transformer"):
        return part
    return "encoder" if site.startswith(("vae.encoder.", "vae.quant_conv")) else "decoder"


def module_of_site(site: str) -> str:
    """Return the part of a network that a block or layer belongs to: a down or up block, the mid block, or itself."""
    names = site.split(".")
    for i, name in enumerate(names):
        if name in ("down_blocks", "up_blocks"):
            return ".".join(names[: i + 2])
        if name == "mid_block":
            return ".".join(names[: i + 1])
    return site


def part_of_network(network: str) -> str:
    """Return the part of the model, unet or vae, that encoder, unet or decoder belongs to."""
    return "unet" if network == "unet" else "vae"


def bits_of_site(site: str, bits: Bits) -> tuple[int, int]:
    """Return (weight bits, activation bits) of one site: by the bits' own rules, then by the VAE's streams."""
    assert bits.weights is not None and bits.activations is not None
    on_stream = site.startswith("vae.") and reads_bare_stream(site)
    return bits.of_site(site) or (bits.weights, STREAM_BITS if on_stream else bits.activations)


def input_groups(sites: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the sites that see the same tensor: q, k and v of self-attention. Every site is in exactly one group."""
    sites = list(sites)
    groups: dict[str, list[str]] = {}
    for site in sites:
        owner, _, name = site.rpartition(".")
        # Cross-attention's k and v see the context, its q something else.
        shared = name in ("to_q", "to_k", "to_v") and not owner.endswith("attn2")
        groups.setdefault(f"{owner}.qkv" if shared else site, []).append(site)
    return [tuple(group) for group in groups.values()]


def concat_boundaries(unet: Any) -> dict[str, int]:
    """Return, of sites whose input starts with a skip concatenation, the channels in front of the seam.

    Up blocks take their skips from the end of: conv_in, then each down block's layers and its downsampler.
    """
    skips = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        skips += [resnet.out_channels for resnet in block.resnets]
        skips += [sampler.out_channels for sampler in block.downsamplers or ()]
    boundaries = {}
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(block.resnets):
            boundary = resnet.in_channels - skips.pop()
            for name in ("conv1", "conv_shortcut"):
                if getattr(resnet, name) is not None:
                    boundaries[f"unet.up_blocks.{i}.resnets.{j}.{name}"] = boundary
    return boundaries
