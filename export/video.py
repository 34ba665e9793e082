"""From a video model, and perhaps a calibration, to five ONNX graphs of one tile size and one length of chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import TEMPORAL_FACTOR
from intsr.calib.models.video import VideoModel, VideoModelSource
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.graphs import EXPORT_NAME, OnnxExport, export_facts, write_facts, write_network
from intsr.files import atomic_folder
from intsr.manifest import ChunkEntry, NetworkEntry
from intsr.targets.lowering import Lowering
from intsr.types import check_tile

# A chunk knows nothing of the frames before it: where one takes over, invented detail changes. A quarter of a chunk
# to fade it in costs 1.3 times the work; half of it would cost twice.
OVERLAP_SHARE = 4

Shape = tuple[int, ...]


def chunk_of(frames: int) -> ChunkEntry:
    """Return a chunk of so many frames with the default overlap. frames: 4n + 1."""
    return ChunkEntry(frames, TEMPORAL_FACTOR, frames // OVERLAP_SHARE)


def export_video_model(
    model: VideoModelSource | VideoModel,
    calibration: Calibration | None,
    lowering: Lowering,
    folder: Path,
    *,
    tile_px: int,
    frames: int,
    on_network: Callable[[str], None] = lambda name: None,
) -> OnnxExport:
    """Specialize, fold and write the folder in one piece; no calibration means full precision.

    tile_px: the side of the low-resolution tile. frames: of a chunk, 4n + 1. on_network: told encoder, transformer
    and decoder as each begins. Of a source one network is held at a time. Raises CalibrationError, ExportError,
    UsageError, ModelError.
    """
    spec = model.spec
    if calibration is not None:
        calibration.check_model(model.digest, spec.name)
    check_tile(tile_px, spec.upscale_factor, spec.size_multiple_px)
    with atomic_folder(folder, marker=EXPORT_NAME) as temporary:
        side_px = tile_px * spec.upscale_factor
        size = frames, side_px
        networks = _write_networks(model, calibration, lowering, temporary, size=size, on_network=on_network)
        export = export_facts(spec, calibration, lowering, tile_px, networks, chunk=chunk_of(frames))
        write_facts(export, temporary)
    return export


def _write_networks(
    model: VideoModelSource | VideoModel,
    calibration: Calibration | None,
    lowering: Lowering,
    folder: Path,
    *,
    size: tuple[int, int],
    on_network: Callable[[str], None],
) -> tuple[NetworkEntry, ...]:
    """In the order of `VIDEO_NETWORKS`. size: frames of a chunk, side of a frame."""
    frames, side_px = size
    pictures: list[Shape] = [(1, 3, count, side_px, side_px) for count in (1, TEMPORAL_FACTOR)]
    on_network("encoder")
    folded = fold_video_network(specialize_encoder(model.load("vae")), calibration)
    encoder = _write_pair(folded, lowering, pictures, folder)
    latent = encoder[0].outputs[0].shape
    latents = (*latent[:2], 1 + (frames - 1) // TEMPORAL_FACTOR, *latent[3:])
    on_network("transformer")
    size_of_latents = latents[2], latents[3], latents[4]
    folded = fold_video_network(specialize_transformer(model.load("transformer"), size_of_latents), calibration)
    transformer = write_network(folded, lowering, {"transformer": [latents]}, folder)
    # Or it would be held while the decoder is made.
    del folded
    on_network("decoder")
    folded = fold_video_network(specialize_decoder(model.load("vae")), calibration)
    decoder = _write_pair(folded, lowering, [latent, latent], folder)
    return (*encoder, *transformer, *decoder)


def _write_pair(
    network: FoldedNetwork, lowering: Lowering, shapes: list[Shape], folder: Path
) -> tuple[NetworkEntry, NetworkEntry]:
    """The graph of a film's first frame, and that of what follows. shapes: what they work on, beside the memory."""
    (start,) = write_network(network, lowering, {f"{network.name}_start": shapes[:1]}, folder)
    memory = [info.shape for info in start.outputs[1:]]
    (following,) = write_network(network, lowering, {f"{network.name}_next": [shapes[1], *memory]}, folder)
    return start, following
