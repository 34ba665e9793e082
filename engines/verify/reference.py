"""torch modules in the place of an engine: the reference that engines are compared with and timed against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.calibration.files import JSON_NAME, load_calibration
from intsr.calib.calibration.types import PASSIONSR, Calibration
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.passionsr.forward import passionsr_model
from intsr.calib.passionsr.types import PassionSRQuantizers
from intsr.engines.compile.assemble import overlap_of
from intsr.errors import CalibrationError, UsageError
from intsr.export.fold.fold import fake_quantized
from intsr.export.pipeline import fold_networks
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.upscaler import Upscaler
from intsr.types import NETWORKS, ModelSpec, TensorInfo

F32 = NDArray[np.float32]


class TorchNetwork:
    """Runs one module as a runtime network, eager, on the CPU."""

    def __init__(self, module: nn.Module, value_in: TensorInfo, value_out: TensorInfo) -> None:
        self.module, self.input, self.output = module.eval(), value_in, value_out

    def run(self, x: F32) -> F32:
        with torch.inference_mode():
            # Contiguous: see `reference`.
            y: F32 = self.module(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return y

    def close(self) -> None:
        """Nothing is held but the module."""


class TorchReference:
    """Modules by name, for `intsr.engines.verify.agreement`."""

    network_names = NETWORKS

    def __init__(self, networks: tuple[TorchNetwork, ...]) -> None:
        self._networks = dict(zip(self.network_names, networks, strict=True))

    def network(self, name: str) -> TorchNetwork:
        return self._networks[name]


def torch_networks(modules: Mapping[str, nn.Module], model: SRModel, tile_px: int) -> tuple[TorchNetwork, ...]:
    """encoder, unet and decoder for one tile size."""
    side = tile_px * model.spec.upscale_factor
    latent_side = side // 2 ** (len(model.vae.config.block_out_channels) - 1)
    picture, latent = (1, 3, side, side), (1, model.vae.config.latent_channels, latent_side, latent_side)
    tensors = {
        "encoder": (TensorInfo("x", picture, "float32"), TensorInfo("latent", latent, "float32")),
        "unet": (TensorInfo("latent", latent, "float32"), TensorInfo("denoised", latent, "float32")),
        "decoder": (TensorInfo("denoised", latent, "float32"), TensorInfo("image", picture, "float32")),
    }
    return tuple(TorchNetwork(modules[name], *tensors[name]) for name in NETWORKS)


def open_reference(
    model_name: str, tile_px: int, threads: int | None, context: Path | None = None, lora: Path | None = None
) -> Upscaler:
    """The model in torch fp32 eager behind the runtime's own tiling and colour fix (for `intsr bench`)."""
    if threads is not None:
        torch.set_num_threads(threads)
    model = load_model(model_name, context, lora)
    return Upscaler(
        backend=Backend(torch_networks(reference_networks(model), model, tile_px)),
        tile_px=tile_px,
        overlap_px=overlap_of(tile_px),
        upscale_factor=model.spec.upscale_factor,
        resize_filter=model.spec.resize_filter,
        color_fix="wavelet",
        synthetic=model.spec.synthetic,
    )


def reference_for_verification(
    against: str,
    model_name: str | None,
    *,
    context: Path | None = None,
    lora: Path | None = None,
    tile_px: int,
    calibration_digest: str,
    weight_only: bool = False,
) -> tuple[TorchReference, ModelSpec]:
    """Open full precision for a model; fake-quantized for a calibration folder, whose model must then be named.

    calibration_digest: the engine's; another calibration's numbers would say nothing about it. weight_only: of an
    engine whose activations are floats, whatever grids the calibration has for them.
    Raises UsageError, ModelError, CalibrationError.
    """
    if not (Path(against) / JSON_NAME).is_file():
        model = load_model(against, context, lora)
        return reference_from_calibration(model, None, tile_px), model.spec
    if model_name is None:
        raise UsageError("--against", "a calibration without its model", "the model too", "add --model MODEL")
    calibration = load_calibration(Path(against))
    if calibration.digest() != calibration_digest:
        built = f"digest {calibration_digest[:12]}" if calibration_digest else "none (full precision)"
        expected = f"the one that the engine was made with, {built}"
        raise CalibrationError(against, f"digest {calibration.digest()[:12]}", expected)
    model = load_model(model_name, context, lora)
    return reference_from_calibration(model, calibration, tile_px, weight_only), model.spec


def reference_from_calibration(
    model: SRModel, calibration: Calibration | None, tile_px: int, weight_only: bool = False
) -> TorchReference:
    """Open what an engine of these must agree with; full precision without a calibration. Raises CalibrationError."""
    if calibration is None:
        return TorchReference(torch_networks(reference_networks(model), model, tile_px))
    if calibration.folding == PASSIONSR and not weight_only:
        # Not the folded form, but what PassionSR's own code computes.
        official = passionsr_model(model, PassionSRQuantizers.from_calibration(calibration))
        return TorchReference(torch_networks(reference_networks(official), model, tile_px))
    # The engine's own folding, seen from torch.
    modules = {n.name: fake_quantized(n, weight_only) for n in fold_networks(model, calibration)}
    return TorchReference(torch_networks(modules, model, tile_px))
