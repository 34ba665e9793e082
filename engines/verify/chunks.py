"""Video networks over whole chunks: an engine's five as three in a row, and a model in torch in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from intsr.arrays import Array
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import TEMPORAL_FACTOR, spatial_factor
from intsr.calib.models.video import VideoModel, VideoModelSource
from intsr.calib.models.video_spec import VideoSpec
from intsr.export.fold.fold import fake_quantized
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.video import chunk_of
from intsr.manifest import NetworkEntry
from intsr.runtime.backends.protocol import EntryNetwork
from intsr.runtime.backends.video import VideoBackend
from intsr.types import VIDEO_NETWORKS, TensorInfo

F32 = NDArray[np.float32]
# Of a whole chunk each: frames to latents, latents to latents, latents to frames.
CHUNK_NETWORKS = ("encoder", "transformer", "decoder")


class ChunkNetwork:
    """A `Network` of a whole chunk."""

    def __init__(self, value_in: TensorInfo, value_out: TensorInfo, function: Callable[[Array], Array]) -> None:
        self.input, self.output, self._function = value_in, value_out, function

    def run(self, x: Array) -> Array:
        return self._function(x)

    def close(self) -> None:
        """The backend closes the networks."""


class ChunkNetworks:
    """A video backend's networks as `CHUNK_NETWORKS`, for `intsr.engines.verify.agreement`."""

    network_names = CHUNK_NETWORKS

    def __init__(self, backend: VideoBackend) -> None:
        picture, latents = backend.networks[0].input, backend.network("transformer").entry.inputs[0]
        shape = (*picture.shape[:2], backend.chunk.frames, *picture.shape[2:])
        frames = TensorInfo("frames", shape, picture.dtype)
        self._networks = {
            "encoder": ChunkNetwork(frames, latents, backend.encode),
            "transformer": ChunkNetwork(latents, latents, backend.denoise),
            "decoder": ChunkNetwork(latents, frames, lambda x: np.concatenate(list(backend.decode(x)), axis=2)),
        }

    def network(self, name: str) -> ChunkNetwork:
        return self._networks[name]


class TorchChunkNetwork(EntryNetwork):
    """Runs one module of a video model as a network of many tensors, eager, on the CPU."""

    def __init__(self, module: nn.Module, entry: NetworkEntry) -> None:
        self.module, self.entry = module.eval(), entry

    def run_all(self, tensors: Sequence[Array]) -> list[Array]:
        """As of `ManyTensorNetwork`."""
        with torch.inference_mode():
            results = self.module(*(torch.from_numpy(np.ascontiguousarray(tensor)) for tensor in tensors))
        return [y.numpy() for y in (results if isinstance(results, tuple) else (results,))]

    def close(self) -> None:
        """Nothing is held but the module."""


def chunk_tensors(
    spec: VideoSpec, vae: Mapping[str, Any], tile_px: int, frames: int
) -> tuple[TensorInfo, TensorInfo]:
    """The frames and the latents of a whole chunk, float32. vae: its configuration."""
    side_px = tile_px * spec.upscale_factor
    latent_side, count = side_px // spatial_factor(vae), 1 + (frames - 1) // TEMPORAL_FACTOR
    latents = (1, len(spec.latents_mean), count, latent_side, latent_side)
    return TensorInfo("frames", (1, 3, frames, side_px, side_px), "float32"), TensorInfo("latent", latents, "float32")


def torch_video_backend(
    model: VideoModelSource | VideoModel,
    calibration: Calibration | None,
    tile_px: int,
    frames: int,
    weight_only: bool = False,
) -> VideoBackend:
    """An engine's own folding, seen from torch; full precision without a calibration.

    weight_only: activations stay as they are. Raises CalibrationError, ExportError, ModelError.
    """
    if calibration is not None:
        calibration.check_model(model.digest, model.spec.name)
    vae = model.load("vae")
    of_frames, latents = chunk_tensors(model.spec, vae.vae.config, tile_px, frames)
    _, _, count, height, width = latents.shape
    transformer = specialize_transformer(model.load("transformer"), (count, height, width))
    specialized = (specialize_encoder(vae), transformer, specialize_decoder(vae))
    encoder, denoiser, decoder = (
        fake_quantized(fold_video_network(network, calibration), weight_only) for network in specialized
    )
    # Of their tensors, the first of the encoder and of the transformer are asked for.
    tensors = (of_frames, of_frames, latents, latents, latents)
    networks = [
        TorchChunkNetwork(module, NetworkEntry(name, "torch", (tensor,), ()))
        for module, name, tensor in zip(
            (encoder, encoder, denoiser, decoder, decoder), VIDEO_NETWORKS, tensors, strict=True
        )
    ]
    return VideoBackend(networks, chunk_of(frames), "f32")
