"""From a video model to five ONNX graphs, for one tile size and one length of chunks, in floats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intsr.calib.models.families.wan import TEMPORAL_FACTOR
from intsr.calib.models.video import VideoModel, VideoModelSource
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.types import SpecializedVideoNetwork
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.graphs import EXPORT_NAME, SCHEMA_VERSION, OnnxExport, write_facts, write_network
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
    lowering: Lowering,
    tile_px: int,
    frames: int,
    folder: Path,
    *,
    on_network: Callable[[str], None] = lambda name: None,
) -> OnnxExport:
    """Specialize each network, and write the folder in one piece.

    tile_px: the side of the low-resolution tile. frames: of a chunk, 4n + 1. on_network: told encoder, transformer
    and decoder as each begins. Of a source one network is held at a time. Raises ExportError, UsageError, ModelError.
    """
    spec = model.spec
    check_tile(tile_px, spec.upscale_factor, spec.size_multiple_px)
    with atomic_folder(folder, marker=EXPORT_NAME) as temporary:
        side_px = tile_px * spec.upscale_factor
        networks = _write_networks(model, lowering, (frames, side_px), temporary, on_network)
        export = OnnxExport(
            schema_version=SCHEMA_VERSION,
            model=spec.name,
            method="none",
            bits="fp",
            parts=(),
            lowering=lowering.name,
            tile_px=tile_px,
            upscale_factor=spec.upscale_factor,
            resize_filter=spec.resize_filter,
            calibration_digest="",
            licence=spec.licence,
            networks=networks,
            synthetic=spec.synthetic,
            chunk=chunk_of(frames),
        )
        write_facts(export, temporary)
    return export


def _write_networks(
    model: VideoModelSource | VideoModel,
    lowering: Lowering,
    size: tuple[int, int],
    folder: Path,
    on_network: Callable[[str], None],
) -> tuple[NetworkEntry, ...]:
    """In the order of `VIDEO_NETWORKS`. size: frames of a chunk, side of a frame."""
    frames, side_px = size
    pictures: list[Shape] = [(1, 3, count, side_px, side_px) for count in (1, TEMPORAL_FACTOR)]
    on_network("encoder")
    encoder = _write_pair(specialize_encoder(model.load("vae")), lowering, pictures, folder)
    latent = encoder[0].outputs[0].shape
    latents = (*latent[:2], 1 + (frames - 1) // TEMPORAL_FACTOR, *latent[3:])
    on_network("transformer")
    specialized = specialize_transformer(model.load("transformer"), (latents[2], latents[3], latents[4]))
    transformer = write_network(_in_floats(specialized), lowering, {"transformer": [latents]}, folder)
    # Or it would be held while the decoder is made.
    del specialized
    on_network("decoder")
    decoder = _write_pair(specialize_decoder(model.load("vae")), lowering, [latent, latent], folder)
    return (*encoder, *transformer, *decoder)


def _write_pair(
    network: SpecializedVideoNetwork, lowering: Lowering, shapes: list[Shape], folder: Path
) -> tuple[NetworkEntry, NetworkEntry]:
    """The graph of a film's first frame, and that of what follows. shapes: what they work on, beside the memory."""
    folded = _in_floats(network)
    (start,) = write_network(folded, lowering, {f"{network.name}_start": shapes[:1]}, folder)
    memory = [info.shape for info in start.outputs[1:]]
    (following,) = write_network(folded, lowering, {f"{network.name}_next": [shapes[1], *memory]}, folder)
    return start, following


def _in_floats(network: SpecializedVideoNetwork) -> FoldedNetwork:
    return FoldedNetwork(network.name, network.module, {})
