"""An official PassionSR checkpoint as a calibration of this project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intsr.calib.calibration.types import PASSIONSR, Calibration, SiteQuantizer
from intsr.calib.passionsr.checkpoint import PassionSRCheckpoint, read_passionsr
from intsr.calib.passionsr.checks import check_belongs_to
from intsr.cli.console import Stopwatch
from intsr.errors import CalibrationError, UsageError
from intsr.memory import peak_resident_bytes
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.passionsr.types import PassionSRLayer

METHOD = "passionsr-official"
OPTION = "--passionsr"


def import_passionsr(model: SRModel, paths: Sequence[Path], bits: Bits, tile_px: int) -> Calibration:
    """Read the UNet's file, or the UNet's and the VAE's, and check that they belong to `model`.

    bits: what they were calibrated for, which files of this format do not say. tile_px: side of the low-resolution
    tile; its tokens must be those of the file. Raises CalibrationError, UsageError.
    """
    if not 1 <= len(paths) <= 2:
        raise UsageError(OPTION, f"{len(paths)} files", "the UNet's, or the UNet's and the VAE's")
    if not bits.quantized:
        raise UsageError("--bits", str(bits), f"wXaY: what the files of {OPTION} were calibrated for")
    watch = Stopwatch()
    checkpoint = read_passionsr(paths[0], paths[1] if len(paths) == 2 else None, model, bits)
    check_belongs_to(checkpoint, model)
    return calibration_from_checkpoint(model, checkpoint, bits, tile_px, round(watch.seconds, 3))


def check_one_tile(calibration: Calibration, tiles_px: Sequence[int]) -> None:
    """Official attention has a range for each token: such a calibration fits the tile that it was imported for.

    Any other calibration fits every size. Raises UsageError.
    """
    if calibration.folding == PASSIONSR and list(tiles_px) != [calibration.tile_px]:
        got = ",".join(map(str, tiles_px))
        raise UsageError("--tile", got, f"{calibration.tile_px}, the one size that the checkpoint was made for")


def calibration_from_checkpoint(
    model: SRModel, checkpoint: PassionSRCheckpoint, bits: Bits, tile_px: int, seconds: float = 0.0
) -> Calibration:
    """Every number of the checkpoint, and a summary of each layer as one grid.

    Raises CalibrationError where the checkpoint was made for another number of context or picture tokens.
    """
    _check_tokens(model, checkpoint, tile_px)
    return Calibration(
        method=METHOD,
        bits=bits,
        parts=checkpoint.parts,
        model=model.spec.name,
        model_digest=model.digest,
        pictures=0,
        tile_px=tile_px,
        seconds=seconds,
        peak_bytes=peak_resident_bytes(),
        sites={site: site_summary(layer) for site, layer in checkpoint.quantizers.layers.items()},
        imported=checkpoint.quantizers.records(),
    )


def site_summary(layer: PassionSRLayer) -> SiteQuantizer:
    """One grid over both pieces, with the same x~ = (x - d) / s: d is o of a convolution, -o of a linear layer."""
    return SiteQuantizer(
        x_min=float(layer.input_low.min()),
        x_max=float(layer.input_high.max()),
        activation_bits=layer.activation_bits,
        weight_bits=layer.weight_bits,
        let_scale=layer.scale.copy(),
        let_shift=layer.offset.copy() if layer.convolution else np.negative(layer.offset),
    )


def _check_tokens(model: SRModel, checkpoint: PassionSRCheckpoint, tile_px: int) -> None:
    latent_side = tile_px * model.spec.upscale_factor // 2 ** (len(model.vae.config.block_out_channels) - 1)
    attentions = checkpoint.quantizers.attentions
    largest = max((len(a.scale_vw) for site, a in attentions.items() if site.endswith("1")), default=0)
    for site, attention in attentions.items():
        tokens, context = len(attention.scale_vw), int(model.context.shape[1])
        if site.endswith("attn2") and tokens != context:
            got = f"{site} made for a context of {tokens} tokens"
            raise CalibrationError(METHOD, got, f"{context}, as the model's", "give the context with --context")
    attends = [i for i, block in enumerate(model.unet.down_blocks) if getattr(block, "attentions", None)]
    if largest and attends:
        side = latent_side >> attends[0]
        if side * side != largest:
            fitting = round(largest**0.5 * tile_px / side) if side else 0
            got = f"{largest} tokens in the first attention, where a tile of {tile_px} has {side * side}"
            raise CalibrationError(METHOD, got, "one number of tokens", f"use --tile {fitting}")
