"""What `intsr compile` would do, told from the model's configuration: nothing is loaded, exported or built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intsr.calib.models.cost import architecture_from_name, costs_from_architecture
from intsr.calib.models.families.adcsr import UNSHUFFLE, UPSCALE_FACTOR, AdcSRArchitecture
from intsr.calib.models.families.architecture import Architecture
from intsr.calib.models.weights import files_of
from intsr.targets import Target
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import ModelSource

Shape = tuple[int, ...]
# Resident in a process that has torch, diffusers and onnx loaded, and no model: 0.55 GB measured, rounded up.
LIBRARIES_BYTES = 600_000_000


@dataclass(frozen=True, slots=True)
class NetworkEstimate:
    """One network at one tile size."""

    name: str
    tile_px: int
    # (N, C, H, W), of a video model (1, C, frames, H, W) of a whole chunk.
    input: Shape
    output: Shape
    # In words.
    precision: str
    parameters: int
    # Multiply-accumulates of convolutions and linear layers.
    macs: int


@dataclass(frozen=True, slots=True)
class CompileEstimate:
    """What a compilation would build, and about what it would take."""

    model: str
    target: str
    networks: tuple[NetworkEstimate, ...]
    engine_bytes: int
    # Of memory.
    peak_bytes: int
    # Of temporary folders, at most.
    disk_bytes: int


def estimate_compilation(
    name: str,
    source: ModelSource,
    *,
    target: Target,
    bits: Bits,
    parts: Sequence[str],
    tiles_px: Sequence[int],
    loads_model: bool = False,
    weight_only: bool = False,
) -> CompileEstimate:
    """name: as the command was given it. bits: of quantized `parts`. loads_model: whether the whole model is loaded
    first, to calibrate or to check a checkpoint against it. weight_only: activations stay float.

    Memory: the model's files and its LoRA's, which are mapped, and the largest network in float32 on top of the
    libraries, or what building it takes. At SD 2.1's size, in integers, 5.8 to 5.9 GB were measured; this gives 6.0.
    With HYPIR's LoRA 6.9, and 7.9 in full precision; this gives 7.0 and 8.1. Raises ModelError, UsageError.
    """
    architecture = architecture_from_name(name, None)
    integers = f"weights of {bits.weights} bits" if weight_only else str(bits)
    networks: list[NetworkEstimate] = []
    for tile_px in tiles_px:
        side_px = tile_px * source.spec.upscale_factor
        costs = costs_from_architecture(architecture, side_px)
        by_network = {part.name: part for cost in costs for part in cost.components or (cost,)}
        for network, (given, made) in _shapes(architecture, side_px).items():
            cost, precision = by_network[network], target.precision_words
            if bits.quantized and ("unet" if network == "unet" else "vae") in parts:
                precision = f"{integers} in int8, the rest {precision}"
            networks.append(NetworkEstimate(network, tile_px, given, made, precision, cost.parameters, cost.macs))
    first = [network for network in networks if network.tile_px == tiles_px[0]]
    once_bytes = sum(stored_bytes(network, target) for network in first)
    engine_bytes = target.extra_bytes + once_bytes * (1 if target.sharing else len(tiles_px))
    files = {file for network in source.networks.values() for file in files_of(network.path)}
    if source.lora is not None:
        path = source.lora.path
        files |= {file for file in path.rglob("*") if file.is_file()} if path.is_dir() else {path}
    parameters = [network.parameters for network in first]
    held = sum(parameters) if loads_model else max(parameters)
    return CompileEstimate(
        model=source.spec.name,
        target=target.name,
        networks=tuple(networks),
        engine_bytes=engine_bytes,
        peak_bytes=max(
            LIBRARIES_BYTES + sum(file.stat().st_size for file in files) + 4 * held,
            *(build_peak_bytes(network, target) for network in first),
        ),
        # The graphs of every tile size, the networks built of them, the engine that they are put into.
        disk_bytes=once_bytes * len(tiles_px) + 2 * engine_bytes,
    )


def stored_bytes(network: NetworkEstimate, target: Target) -> int:
    """Of a network's weights: a byte each where they are integers."""
    return network.parameters * (1 if network.precision != target.precision_words else target.float_bytes)


def build_peak_bytes(network: NetworkEstimate, target: Target, waiting_bytes: int = LIBRARIES_BYTES) -> int:
    """What building one network takes. waiting_bytes: of the command meanwhile."""
    # TensorRT's builders take as much for integers as for floats.
    held_bytes = network.parameters * target.float_bytes if target.gpu else stored_bytes(network, target)
    return waiting_bytes + LIBRARIES_BYTES + round(target.build_copies * held_bytes)


def _shapes(architecture: Architecture | AdcSRArchitecture, side_px: int) -> dict[str, tuple[Shape, Shape]]:
    if isinstance(architecture, AdcSRArchitecture):
        tile_px, features = side_px // UPSCALE_FACTOR, side_px // UPSCALE_FACTOR // UNSHUFFLE
        between = (1, architecture.decoder_widths[-1], features, features)
        return {"unet": ((1, 3, tile_px, tile_px), between), "decoder": (between, (1, 3, side_px, side_px))}
    vae = architecture.vae
    latent_side = side_px // 2 ** (len(vae["block_out_channels"]) - 1)
    picture, latent = (1, 3, side_px, side_px), (1, int(vae.get("latent_channels", 4)), latent_side, latent_side)
    return {"encoder": (picture, latent), "unet": (latent, latent), "decoder": (latent, picture)}


def lines_of_estimate(estimate: CompileEstimate) -> list[str]:
    """A table for people."""
    wide = max(len(network.name) for network in estimate.networks)
    head = f"{'network':<{wide}} {'tile':>4}  {'input':<14} {'output':<14}"
    lines = [f"{head} {'parameters':>13} {'GMAC':>8}  precision"]
    for network in estimate.networks:
        given, made = ("x".join(map(str, shape)) for shape in (network.input, network.output))
        counts = f"{network.parameters:>13,} {network.macs / 1e9:>8.1f}"
        begin = f"{network.name:<{wide}} {network.tile_px:>4}  {given:<14} {made:<14}"
        lines.append(f"{begin} {counts}  {network.precision}")
    lines.append(f"engine: about {_amount(estimate.engine_bytes)}, target {estimate.target}")
    needs = f"{_amount(estimate.peak_bytes)} of memory, {_amount(estimate.disk_bytes)} on the disk for a while"
    return [*lines, f"compiling needs about {needs}"]


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{math.ceil(size_bytes / 1e6)} MB"
