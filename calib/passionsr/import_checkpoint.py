"""Read PassionSR's calibrated checkpoints, and check that they belong to a model: they hold no weights of their own.

docs/theory.md, "PassionSR's checkpoints".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.calibration.types import PARTS, PASSIONSR, Calibration, SiteQuantizer
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.spec import diffusion_spec
from intsr.calib.models.tensor_files import read_checkpoint
from intsr.calib.passionsr.forward import halves
from intsr.calib.passionsr.layout import EIGHT_BIT_SITES, Entry, Shape, checkpoint_layout
from intsr.calib.passionsr.types import PassionSRAttention, PassionSRLayer, PassionSRQuantizers
from intsr.cli.console import Stopwatch
from intsr.errors import CalibrationError, UsageError
from intsr.memory import peak_resident_bytes
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

METHOD = "passionsr-official"
OPTION = "--passionsr"
SHOWN_KEYS = 3
# Norms are copied, not trained: what differs is another model. A copy that went through fp16 is still the same.
NORM_TOLERANCE = 2e-3
# How far a learned range's ends may lie from the smallest and largest of W s, as a share of the range's width: the
# median over a layer's output channels, and over all of a network's. Training moves them by a few thousandths; the
# reference checkpoints, whose ranges were shaken by 2 %, have 0.04 and 0.01.
LAYER_LIMIT, NETWORK_LIMIT = 0.15, 0.03


def check_one_tile(calibration: Calibration, tiles_px: Sequence[int]) -> None:
    """Official attention has a range for each token: such a calibration fits the tile that it was imported for.

    Any other calibration fits every size. Raises UsageError.
    """
    if calibration.folding == PASSIONSR and list(tiles_px) != [calibration.tile_px]:
        got = ",".join(map(str, tiles_px))
        raise UsageError("--tile", got, f"{calibration.tile_px}, the one size that the checkpoint was made for")


def import_passionsr(model: SRModel, paths: Sequence[Path], bits: Bits, tile_px: int) -> Calibration:
    """Read the UNet's file, or the UNet's and the VAE's: every number, and a summary of each layer as one grid.

    bits: what they were calibrated for, which files of this format do not say. tile_px: side of the low-resolution
    tile; its tokens must be those of the file.

    Raises UsageError, ModelError for a file that is no plain checkpoint, and CalibrationError for a key too many or
    too few, a shape that does not fit the model, a range that is empty or not finite, norms that differ from the
    model's, weight ranges that do not fit its weights, and another number of context or picture tokens.
    """
    if not 1 <= len(paths) <= 2:
        raise UsageError(OPTION, f"{len(paths)} files", "the UNet's, or the UNet's and the VAE's")
    if bits.weights is None or bits.activations is None:
        raise UsageError("--bits", str(bits), f"wXaY: what the files of {OPTION} were calibrated for")
    spec = diffusion_spec(model.spec)
    if spec.x0_rule != "epsilon":
        raise CalibrationError(spec.name, f"x0 by the rule {spec.x0_rule}", "epsilon, as PassionSR's")
    watch = Stopwatch()
    layers: dict[str, PassionSRLayer] = {}
    attentions: dict[str, PassionSRAttention] = {}
    misfits: dict[str, NDArray[np.float64]] = {}
    parts = PARTS[: len(paths)]
    where = f"{model.spec.name} with this checkpoint"
    for part, path in zip(parts, paths, strict=True):
        layout = checkpoint_layout(model, part)
        tensors = _checked_tensors(path, expected_shapes(layout))
        for entry in layout:
            numbers: dict[str, Any] = {
                name: _numbers(tensors, name, *places) for name, places in entry.tensors.items()
            }
            asked = bits.weights, bits.activations
            weight_bits, activation_bits = (8, 8) if entry.site in EIGHT_BIT_SITES else asked
            if isinstance(entry.module, nn.Conv2d | nn.Linear):
                layer = PassionSRLayer(entry.convolution, weight_bits, activation_bits, **numbers)
                layers[entry.site] = layer
                misfits[entry.site] = _range_misfit(entry.module.weight, layer)
            elif isinstance(entry.module, nn.GroupNorm | nn.LayerNorm):
                _check_norm(entry, numbers, where)
            else:
                attentions[entry.site] = PassionSRAttention(activation_bits, **numbers)
    _check_misfits(misfits, where)
    _check_tokens(model, attentions, tile_px)
    return Calibration(
        method=METHOD,
        bits=bits,
        parts=parts,
        model=model.spec.name,
        model_digest=model.digest,
        pictures=0,
        tile_px=tile_px,
        seconds=round(watch.seconds, 3),
        peak_bytes=peak_resident_bytes(),
        sites={site: _site_summary(layer) for site, layer in layers.items()},
        imported=PassionSRQuantizers(layers, attentions).records(),
    )


def expected_shapes(layout: Sequence[Entry]) -> dict[str, Shape]:
    """Every key of a checkpoint, with its shape; None: (tokens,)."""
    return {key: shape for entry in layout for keys, shape in entry.tensors.values() for key in keys}


def _checked_tensors(path: Path, shapes: Mapping[str, Shape]) -> Mapping[str, torch.Tensor]:
    checkpoint = read_checkpoint(path)
    tensors, keys = checkpoint.tensors, [*checkpoint.tensors, *checkpoint.values]
    found = []
    for kind, names, others in (("missing", shapes, tensors), ("unexpected", keys, shapes)):
        if odd := [name for name in names if name not in others]:
            found.append(f"{len(odd)} keys {kind} ({', '.join(odd[:SHOWN_KEYS])})")
    if found:
        fix = "give the UNet's file and the VAE's of one calibration, and the model they were made for"
        raise CalibrationError(path, " and ".join(found), f"the {len(shapes)} keys of this architecture", fix)
    for key, shape in shapes.items():
        tensor = tensors[key]
        fits = tensor.ndim == 1 and len(tensor) > 0 if shape is None else tuple(tensor.shape) == shape
        if not fits or not tensor.is_floating_point():
            got = f"{key} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise CalibrationError(path, got, "(tokens,)" if shape is None else f"floats of shape {shape}")
        if not torch.isfinite(tensor).all():
            raise CalibrationError(path, f"NaN or infinity in {key}", "finite values")
        if "scale_factor" in key and not bool((tensor > 0).all()):
            raise CalibrationError(path, f"{key} is not above 0", "scales above 0")
        if key.endswith(".x_min") and not bool((tensor < tensors[f"{key[:-3]}max"]).all()):
            raise CalibrationError(path, f"{key} is not below its x_max", "a range of some width")
    return tensors


def _numbers(tensors: Mapping[str, torch.Tensor], name: str, keys: Sequence[str], shape: Shape) -> NDArray[Any]:
    """Scalars in float64, as the official model keeps them whatever the file has, all else in float32."""
    dtype = torch.float64 if shape == () else torch.float32
    numbers = torch.stack([tensors[key].to(dtype).flatten() for key in keys])
    # (pieces, Cout), however many pieces there are.
    return (numbers if name.startswith("weight_") else numbers.flatten()).numpy()


def _check_norm(entry: Entry, numbers: Mapping[str, NDArray[np.float32]], where: str) -> None:
    for name, expected in numbers.items():
        difference = float(np.abs(getattr(entry.module, name).numpy() - expected).max())
        if difference > NORM_TOLERANCE * max(1.0, float(np.abs(expected).max())):
            got = f"{entry.site}.{name} differs by {difference:.3g} from the checkpoint's"
            raise CalibrationError(where, got, "equal norms", "give the base model that was calibrated")


def _range_misfit(weight: torch.Tensor, layer: PassionSRLayer) -> NDArray[np.float64]:
    """Distance of both ends from the smallest and largest of W s, by range width: (pieces * Cout,)."""
    scaled = weight.numpy().reshape(*weight.shape[:2], -1) * layer.scale[None, :, None]
    pieces = [scaled[:, cut] for cut in halves(scaled.shape[1], len(layer.weight_low))]
    low, high = (np.stack([end(piece, axis=(1, 2)) for piece in pieces]) for end in (np.min, np.max))
    distance = np.maximum(np.abs(layer.weight_low - low), np.abs(layer.weight_high - high))
    return (distance / (layer.weight_high - layer.weight_low)).flatten().astype(np.float64)


def _check_misfits(misfits: Mapping[str, NDArray[np.float64]], where: str) -> None:
    networks: dict[str, list[NDArray[np.float64]]] = {}
    for site, misfit in misfits.items():
        networks.setdefault(network_of_site(site), []).append(misfit)
    medians = {name: float(np.median(np.concatenate(values))) for name, values in networks.items()}
    wrong = [f"{name} by {median:.1%}" for name, median in medians.items() if median > NETWORK_LIMIT]
    share, worst = max((float(np.median(misfit)), site) for site, misfit in misfits.items())
    if share > LAYER_LIMIT or wrong:
        got = f"weight ranges that miss the model's weights: {', '.join([*wrong, f'{worst} by {share:.1%}'])}"
        limits = f"ends within {NETWORK_LIMIT:.0%} of a network's weights times s, {LAYER_LIMIT:.0%} of a layer's"
        raise CalibrationError(
            where, got, limits, "give the base model with OSEDiff's LoRA merged, the one that was calibrated"
        )


def _check_tokens(model: SRModel, attentions: Mapping[str, PassionSRAttention], tile_px: int) -> None:
    tokens, context = {site: len(a.scale_vw) for site, a in attentions.items()}, int(model.context.shape[1])
    other = next((site for site in tokens if site.endswith("attn2") and tokens[site] != context), None)
    if other is not None:
        got = f"{other} made for a context of {tokens[other]} tokens"
        raise CalibrationError(METHOD, got, f"{context}, as the model's", "give the context with --context")
    levels = [level for level, block in enumerate(model.unet.down_blocks) if getattr(block, "attentions", None)]
    largest = max((count for site, count in tokens.items() if site.endswith("attn1")), default=0)
    if largest and levels:
        side = tile_px * model.spec.upscale_factor >> len(model.vae.config.block_out_channels) - 1 + levels[0]
        if side * side != largest:
            fitting = round(largest**0.5 * tile_px / side) if side else 0
            got = f"{largest} tokens in the first attention, where a tile of {tile_px} has {side * side}"
            raise CalibrationError(METHOD, got, "one number of tokens", f"use --tile {fitting}")


def _site_summary(layer: PassionSRLayer) -> SiteQuantizer:
    """One grid over both pieces, with the same x~ = (x - d) / s: d is o of a convolution, -o of a linear layer."""
    return SiteQuantizer(
        x_min=float(layer.input_low.min()),
        x_max=float(layer.input_high.max()),
        activation_bits=layer.activation_bits,
        weight_bits=layer.weight_bits,
        let_scale=layer.scale.copy(),
        let_shift=layer.offset.copy() if layer.convolution else np.negative(layer.offset),
    )
