"""AdcSR by its published files: what is in them, and what of a model's shapes they tell.

AdcSR is OSEDiff pruned. Its UNet has three quarters of SD 2.1's channels, no timestep, no cross-attention, and takes
the low resolution itself through PixelUnshuffle; its decoder has half of the channels and no latents in front: what
the UNet makes goes into its mid block. There is no encoder. Nothing here needs torch or diffusers.

Source: github.com/Guaishou74851/AdcSR, model.py, forward.py and test.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intsr.errors import ModelError
from intsr.types import DIRECT_NETWORKS, RunDefaults

# The state dict of the trained network, UNet and mid block, and the decoder that it was trained in front of.
NET_NAME, DECODER_NAME = "net_params_200.pkl", "halfDecoder.ckpt"
# Where the original's own folders have the decoder, beside the network.
DECODER_FOLDERS = ("", "pretrained")
# Names in the network's file: of the UNet, of what the UNet registers a second time, and of the mid block.
UNET, AGAIN, MID = "module.body.1.", "module.body.1.body.", "module.body.2."
DECODER = "state_dict.decoder."
# Classes of the two configurations, as diffusers' `_class_name`.
CLASSES = {"unet": "AdcSRUNet", "vae": "AdcSRDecoder"}
HEAD_CHANNELS = 48
UNSHUFFLE, PICTURE_CHANNELS = 2, 3
UPSCALE_FACTOR = 4
# Of a GroupNorm, the first that divides its channels.
GROUPS = (32, 24, 16, 12, 8, 6, 4, 2, 1)
DECODER_GROUPS, DECODER_BLOCKS = 32, 4
# The UNet's last convolution makes as many channels as the decoder has, not latents: it is no layer that stays float,
# and so is not called as SD 2.1's, which is.
LAST_CONV = "features.conv_out"
LICENCE = "AdcSR's weights: Apache-2.0"
# Its authors' code runs a whole picture at once: tiles as of any other model.
DEFAULTS = RunDefaults("adcsr", "adain")


@dataclass(frozen=True, slots=True)
class AdcSRSpec:
    """What is to be known beside the weights; the members as in `PictureSpec`."""

    name: str
    size_multiple_px: int
    licence: str
    synthetic: bool = field(default=False, repr=False)
    upscale_factor: int = UPSCALE_FACTOR
    # The colour fix compares with the pixels as they are.
    input_factor: int = 1
    resize_filter: str = "box"
    networks: tuple[str, ...] = DIRECT_NETWORKS
    prompt: None = None
    defaults: RunDefaults = DEFAULTS


@dataclass(frozen=True, slots=True)
class AdcSRArchitecture:
    """A model's shapes; by default the published model's.

    widths: channels of the UNet's blocks. attention: which of them have it. layers: residual blocks of each.
    decoder_widths: channels of the decoder's blocks, the picture's first. synthetic: of random weights.
    """

    name: str = "AdcSR"
    widths: tuple[int, ...] = (240, 480, 960, 960)
    attention: tuple[bool, ...] = (True, True, True, False)
    layers: int = 2
    decoder_widths: tuple[int, ...] = (64, 128, 256, 256)
    synthetic: bool = False

    @property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The configurations by part."""
        unet = {"widths": self.widths, "attention": self.attention, "layers": self.layers}
        return {
            "unet": {"_class_name": CLASSES["unet"], **unet, "features": self.decoder_widths[-1]},
            "vae": {"_class_name": CLASSES["vae"], "widths": self.decoder_widths},
        }

    @property
    def size_multiple_px(self) -> int:
        """The output's sides must be whole multiples of this: the UNet halves what PixelUnshuffle has halved."""
        return int(UPSCALE_FACTOR * UNSHUFFLE * 2 ** (len(self.widths) - 1))


ADCSR = AdcSRArchitecture()


def is_adcsr_folder(folder: Path) -> bool:
    """Tell whether one of AdcSR's two files is there."""
    return (folder / NET_NAME).is_file() or decoder_file(folder).is_file()


def is_adcsr(config: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is of `AdcSRArchitecture.networks`."""
    return config.get("_class_name") in CLASSES.values()


def decoder_file(folder: Path) -> Path:
    """Return where the decoder's file is, or belongs."""
    places = [folder / between / DECODER_NAME for between in DECODER_FOLDERS]
    return next((place for place in places if place.is_file()), places[0])


def groups_of(channels: int) -> int:
    """Return a GroupNorm's groups in the UNet."""
    return next(groups for groups in GROUPS if channels % groups == 0)


def architecture_from_shapes(
    net: Mapping[str, tuple[int, ...]], decoder: Mapping[str, tuple[int, ...]], name: str, where: Path
) -> AdcSRArchitecture:
    """Read the widths off the tensors' shapes: of the network's file, and of the decoder's. Raises ModelError."""
    first = f"{UNET}down_blocks.%d.resnets.0.conv1.weight"
    widths = tuple(net[key][0] for key in _each(first, net))
    decoder_widths = tuple(decoder[key][0] for key in _each(f"{DECODER}up_blocks.%d.resnets.0.conv1.weight", decoder))
    if not widths or len(decoder_widths) != DECODER_BLOCKS:
        got = f"{len(widths)} down blocks of a UNet and {len(decoder_widths)} up blocks of a decoder"
        raise ModelError(where, got, f"AdcSR's files: {first % 0} and the like, and {DECODER_BLOCKS} up blocks")
    uneven = [width for width in widths if not width or width % HEAD_CHANNELS]
    uneven += [width for width in decoder_widths if not width or width % DECODER_GROUPS]
    if uneven:
        expected = f"multiples of {HEAD_CHANNELS} in the UNet, of {DECODER_GROUPS} in the decoder"
        raise ModelError(where, f"a block of {uneven[0]} channels", expected)
    return AdcSRArchitecture(
        name,
        widths,
        tuple(f"{UNET}down_blocks.{i}.attentions.0.norm.weight" in net for i in range(len(widths))),
        len(_each(f"{UNET}down_blocks.0.resnets.%d.conv1.weight", net)),
        tuple(reversed(decoder_widths)),
    )


def _each(pattern: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names that are there, of a pattern with a number from 0 on."""
    names: list[str] = []
    while shapes.get(name := pattern % len(names)):
        names.append(name)
    return names
