"""AdcSR's two published files: checked name by name, read, and written with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from intsr.calib.models.families.adcsr import (
    AGAIN,
    DECODER,
    DECODER_NAME,
    LAST_CONV,
    MID,
    NET_NAME,
    UNET,
    AdcSRArchitecture,
    architecture_from_shapes,
    decoder_file,
)
from intsr.calib.models.families.adcsr_networks import adcsr_networks, make_decoder, make_unet, whole_decoder
from intsr.calib.models.families.family import Randomize, save_random
from intsr.calib.models.tensor_files import Checkpoint, check_names, read_checkpoint
from intsr.errors import ModelError
from intsr.files import atomic_folder
from intsr.types import SYNTHETIC_NOTE

Shapes = Mapping[str, tuple[int, ...]]
MAKERS = {"unet": make_unet, "vae": make_decoder}


def files_of_folder(folder: Path) -> tuple[Path, Path]:
    """The network's file and the decoder's. Raises ModelError where one is missing."""
    paths = folder / NET_NAME, decoder_file(folder)
    there = [path.is_file() for path in paths]
    if not all(there):
        got = f"{paths[there.index(True)].name} without {paths[there.index(False)].name}"
        raise ModelError(folder, got, f"both of AdcSR's files: {NET_NAME} and {DECODER_NAME}")
    return paths


def read_architecture(folder: Path, name: str) -> AdcSRArchitecture:
    """Read the shapes off both files, and check every name and shape. Raises ModelError."""
    net, decoder = _read(folder)
    of_net, of_decoder = shapes_of(net.tensors), shapes_of(_of_decoder(decoder))
    architecture = architecture_from_shapes(of_net, of_decoder, name, folder)
    expected, expected_decoder = published_shapes(architecture)
    check_names(net.path, "AdcSR's network", expected, of_net)
    check_names(decoder.path, "AdcSR's decoder", expected_decoder, of_decoder)
    return replace(architecture, synthetic=SYNTHETIC_NOTE in (net.note, decoder.note))


def read_weights(part: str, folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of `unet` or `vae` by the names of its module, as stored, mapped where possible. Raises ModelError."""
    net, decoder = _read(folder)
    if part == "unet":
        _check_duplicates(net)
        own = {name: t for name, t in net.tensors.items() if name.startswith(UNET) and not name.startswith(AGAIN)}
        return {_own_name(name.removeprefix(UNET)): tensor for name, tensor in own.items()}
    weights = {f"decoder.{name.removeprefix(MID)}": t for name, t in net.tensors.items() if name.startswith(MID)}
    weights = {name.replace("decoder.", "decoder.mid_block.", 1): tensor for name, tensor in weights.items()}
    # What the decoder had in front of its up blocks has been trained since, or has no place.
    old = (f"{DECODER}conv_in.", f"{DECODER}mid_block.")
    rest = {name: tensor for name, tensor in _of_decoder(decoder).items() if not name.startswith(old)}
    return weights | {f"decoder.{name.removeprefix(DECODER)}": tensor for name, tensor in rest.items()}


def write_published(architecture: AdcSRArchitecture, folder: Path, make: Randomize) -> None:
    """Write both files of random weights, in one piece, marked as such.

    make: a tensor by its part and name, `unet.NAME` or `vae.decoder.NAME`, and its shape. Raises UsageError where the
    folder exists.
    """
    net, decoder = published_shapes(architecture)
    blocks = len(architecture.widths)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in net.items():
        if name.startswith(MID):
            tensors[name] = make(f"vae.decoder.mid_block.{name.removeprefix(MID)}", shape)
        elif not name.startswith(AGAIN):
            tensors[name] = make(f"unet.{_own_name(name.removeprefix(UNET))}", shape)
            if (second := _second_name(name, blocks)) is not None:
                # As in the original: the same tensor under two names, stored once.
                tensors[second] = tensors[name]
    names = {name: name.removeprefix("state_dict.") for name in decoder}
    of_decoder = {names[name]: make(f"vae.{names[name]}", shape) for name, shape in decoder.items()}
    with atomic_folder(folder, overwrite=False) as temporary:
        save_random(temporary / NET_NAME, tensors)
        save_random(temporary / DECODER_NAME, {"state_dict": of_decoder})


def published_shapes(architecture: AdcSRArchitecture) -> tuple[Shapes, Shapes]:
    """Every name of the network's file, and of the decoder's, with its shape."""
    unet, vae = (shapes_of(network.state_dict()) for network in empty_parts(architecture).values())
    net = {f"{UNET}{name.replace(LAST_CONV, 'conv_out')}": shape for name, shape in unet.items()}
    blocks = len(architecture.widths)
    net |= {second: shape for name, shape in net.items() if (second := _second_name(name, blocks)) is not None}
    mid = "decoder.mid_block."
    net |= {f"{MID}{name.removeprefix(mid)}": shape for name, shape in vae.items() if name.startswith(mid)}
    with torch.device("meta"):
        decoder = whole_decoder(architecture.networks["vae"])
    return net, {f"{DECODER}{name}": shape for name, shape in shapes_of(decoder.state_dict()).items()}


def empty_networks(architecture: AdcSRArchitecture) -> dict[str, nn.Module]:
    """unet and decoder on torch's meta device."""
    return adcsr_networks(**empty_parts(architecture))


def empty_parts(architecture: AdcSRArchitecture) -> dict[str, nn.Module]:
    """unet and vae on torch's meta device."""
    with torch.device("meta"):
        return {part: MAKERS[part](config) for part, config in architecture.networks.items()}


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _read(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    net, decoder = files_of_folder(folder)
    return read_checkpoint(net), read_checkpoint(decoder)


def _of_decoder(decoder: Checkpoint) -> dict[str, torch.Tensor]:
    """What the original takes of the file: names with `decoder`; its trainer and losses may be there too."""
    return {
        name: tensor
        for name, tensor in decoder.tensors.items()
        if name.startswith("state_dict.") and "decoder" in name
    }


def _own_name(name: str) -> str:
    return f"{LAST_CONV}{name.removeprefix('conv_out')}" if name.startswith("conv_out.") else name


def _second_name(name: str, blocks: int) -> str | None:
    """The name that a tensor of the UNet has in the list of all blocks in their order, None for conv_in's."""
    first, _, rest = name.removeprefix(UNET).partition(".")
    match first:
        case "down_blocks" | "up_blocks":
            index, _, rest = rest.partition(".")
            place = int(index) + (blocks + 1 if first == "up_blocks" else 0)
        case "mid_block":
            place = blocks
        case "conv_norm_out" | "conv_out":
            # SiLU, which has no tensors, is between the two.
            place = 2 * blocks + (1 if first == "conv_norm_out" else 3)
        case _:
            return None
    return f"{AGAIN}{place}.{rest}"


def _check_duplicates(net: Checkpoint) -> None:
    """Raises ModelError where what is there twice is not the same."""
    start = f"{UNET}down_blocks."
    blocks = len({name.removeprefix(start).partition(".")[0] for name in net.tensors if name.startswith(start)})
    for name, tensor in net.tensors.items():
        second = _second_name(name, blocks) if name.startswith(UNET) and not name.startswith(AGAIN) else None
        if second is None:
            continue
        again = net.tensors[second]
        if again.data_ptr() != tensor.data_ptr() and not torch.equal(again, tensor):
            raise ModelError(net.path, f"{name} and {second} differ", "the same values under both names")
