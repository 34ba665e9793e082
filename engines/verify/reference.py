"""torch modules in the place of an engine: the reference that engines are compared with and timed against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.calib.calibration.files import JSON_NAME, load_calibration
from intsr.calib.calibration.types import PASSIONSR, Calibration
from intsr.calib.models.families.adcsr import UNSHUFFLE
from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks, video_reference_networks
from intsr.calib.models.video import VideoModelSource, open_video_model
from intsr.calib.models.video_spec import VideoSpec
from intsr.calib.passionsr.forward import passionsr_model
from intsr.calib.passionsr.types import PassionSRQuantizers
from intsr.engines.compile.assemble import overlap_of
from intsr.engines.verify.chunks import CHUNK_NETWORKS, ChunkNetworks, chunk_tensors, torch_video_backend
from intsr.errors import CalibrationError, UsageError
from intsr.export.fold.fold import fake_quantized
from intsr.export.pipeline import fold_networks
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.upscaler import Upscaler
from intsr.types import DIRECT_NETWORKS, NO_WEIGHT_OPTIONS, USUAL_DEFAULTS, PictureSpec, TensorInfo, WeightOptions

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

    def __init__(self, networks: Mapping[str, TorchNetwork]) -> None:
        """networks: in the order in which they run."""
        self._networks = dict(networks)
        self.network_names = tuple(networks)

    def network(self, name: str) -> TorchNetwork:
        return self._networks[name]


def torch_networks(modules: Mapping[str, nn.Module], model: SRModel, tile_px: int) -> dict[str, TorchNetwork]:
    """The networks for one tile size, by name and in the order in which they run."""
    networks = {}
    side = tile_px * model.spec.input_factor
    shape: tuple[int, ...] = (1, 3, side, side)
    for name, output in zip(model.spec.networks, output_shapes(model, tile_px), strict=True):
        value_in, value_out = (
            TensorInfo(value, of, "float32") for value, of in (("input", shape), ("output", output))
        )
        networks[name] = TorchNetwork(modules[name], value_in, value_out)
        shape = output
    return networks


def output_shapes(model: SRModel, tile_px: int) -> list[tuple[int, ...]]:
    """What each network makes of a tile."""
    side = tile_px * model.spec.upscale_factor
    picture = (1, 3, side, side)
    if model.spec.networks == DIRECT_NETWORKS:
        features: Any = model.unet.features
        return [(1, features.conv_out.out_channels, tile_px // UNSHUFFLE, tile_px // UNSHUFFLE), picture]
    latent_side = side // 2 ** (len(model.vae.config.block_out_channels) - 1)
    latent = (1, model.vae.config.latent_channels, latent_side, latent_side)
    return [latent, latent, picture]


def open_reference(
    model_name: str,
    tile_px: int,
    threads: int | None,
    weights: WeightOptions = NO_WEIGHT_OPTIONS,
    *,
    frames: int | None = None,
) -> Upscaler:
    """The model in torch fp32 eager behind the runtime's own tiling and colour fix (for `intsr bench`).

    frames: of a video model's chunk, which runs as an engine runs it. Raises ModelError, UsageError.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    spec: PictureSpec | VideoSpec
    backend: Backend
    defaults = USUAL_DEFAULTS
    if frames is None:
        model = load_model(model_name, **weights.arguments)
        networks = torch_networks(reference_networks(model), model, tile_px)
        backend, spec = Backend(list(networks.values()), names=tuple(networks)), model.spec
        defaults = model.spec.defaults
    else:
        weights.check_of_video()
        source = open_video_model(model_name, weights.context)
        backend, spec = torch_video_backend(source, None, tile_px, frames), source.spec
    return Upscaler(
        backend=backend,
        tile_px=tile_px,
        overlap_px=overlap_of(tile_px, defaults.overlap_divisor),
        upscale_factor=spec.upscale_factor,
        resize_filter=spec.resize_filter,
        color_fix=defaults.color_fix,
        min_side_px=defaults.min_side_px,
        synthetic=spec.synthetic,
    )


def reference_for_verification(
    against: str,
    model_name: str | None,
    *,
    weights: WeightOptions = NO_WEIGHT_OPTIONS,
    tile_px: int,
    calibration_digest: str,
    weight_only: bool = False,
    frames: int | None = None,
) -> tuple[TorchReference | ChunkNetworks, PictureSpec | VideoSpec]:
    """Open full precision for a model; fake-quantized for a calibration folder, whose model must then be named.

    calibration_digest: the engine's; another calibration's numbers would say nothing about it. weight_only: of an
    engine whose activations are floats, whatever grids the calibration has for them. frames: of a video engine's
    chunk.
    Raises UsageError, ModelError, CalibrationError.
    """
    name, calibration = against, None
    if (Path(against) / JSON_NAME).is_file():
        if model_name is None:
            raise UsageError("--against", "a calibration without its model", "the model too", "add --model MODEL")
        name, calibration = model_name, load_calibration(Path(against))
        if calibration.digest() != calibration_digest:
            built = f"digest {calibration_digest[:12]}" if calibration_digest else "none (full precision)"
            expected = f"the one that the engine was made with, {built}"
            raise CalibrationError(against, f"digest {calibration.digest()[:12]}", expected)
    elif model_name is not None:
        raise UsageError("--model", "given", "only with a calibration for --against", "leave one of the two out")
    if frames is not None:
        source = open_video_model(name, weights.context)
        return video_reference(source, calibration, tile_px, frames, weight_only), source.spec
    model = load_model(name, **weights.arguments)
    return reference_from_calibration(model, calibration, tile_px, weight_only), model.spec


def video_reference(
    source: VideoModelSource, calibration: Calibration | None, tile_px: int, frames: int, weight_only: bool = False
) -> TorchReference | ChunkNetworks:
    """What an engine of these must agree with, of whole chunks: without a calibration diffusers' own modules, which
    know nothing of chunks. Raises CalibrationError, ExportError, ModelError.
    """
    if calibration is not None:
        return ChunkNetworks(torch_video_backend(source, calibration, tile_px, frames, weight_only))
    model = source.load()
    pixels, latents = chunk_tensors(model.spec, model.vae.config, tile_px, frames)
    tensors = {"encoder": (pixels, latents), "transformer": (latents, latents), "decoder": (latents, pixels)}
    modules = video_reference_networks(model)
    return TorchReference({name: TorchNetwork(modules[name], *tensors[name]) for name in CHUNK_NETWORKS})


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
