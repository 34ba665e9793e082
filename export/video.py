"""From a video model, and perhaps a calibration, to five ONNX graphs of one tile size and one length of chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import TEMPORAL_FACTOR
from intsr.calib.models.video import VideoModel, VideoModelSource
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.graphs import (
    EXPORT_NAME,
    ExportTile,
    OnnxExport,
    check_tiles,
    export_facts,
    write_facts,
    write_network,
)
from intsr.files import atomic_folder
from intsr.manifest import ChunkEntry, NetworkEntry
from intsr.targets.lowering import Lowering

# A chunk knows nothing of the frames before it: where one takes over, invented detail changes. A quarter of a chunk
# to fade it in costs 1.3 times the work; half of it would cost twice.
OVERLAP_SHARE = 4
# Of a chunk, where no other number was asked for.
DEFAULT_FRAMES = 9

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
    tiles_px: Sequence[int],
    frames: int,
    on_network: Callable[[str], None] = lambda name: None,
) -> OnnxExport:
    """Specialize, fold and write the folder in one piece; no calibration means full precision.

    tiles_px: sides of the low-resolution tiles, the default first; all that does not depend on the size is done once.
    frames: of a chunk, 4n + 1. on_network: told encoder, transformer and decoder as each begins. Of a source one
    network is held at a time. Raises CalibrationError, ExportError, UsageError, ModelError.
    """
    spec = model.spec
    if calibration is not None:
        calibration.check_model(model.digest, spec.name)
    check_tiles(tiles_px, spec)
    tile_px, *further_px = tiles_px
    with atomic_folder(folder, marker=EXPORT_NAME) as temporary:
        sides = {"": tile_px, **{f"@{side}": side for side in further_px}}
        sizes = {of: side * spec.upscale_factor for of, side in sides.items()}
        entries = _write_networks(
            model, calibration, lowering, temporary, frames=frames, sizes=sizes, on_network=on_network
        )
        first, *further = zip(*entries, strict=True)
        export = export_facts(spec, calibration, lowering, tile_px, first, chunk=chunk_of(frames))
        export = replace(export, tiles=tuple(map(ExportTile, further_px, further)))
        write_facts(export, temporary)
    return export


def _write_networks(
    model: VideoModelSource | VideoModel,
    calibration: Calibration | None,
    lowering: Lowering,
    folder: Path,
    *,
    frames: int,
    sizes: Mapping[str, int],
    on_network: Callable[[str], None],
) -> list[list[NetworkEntry]]:
    """In the order of `VIDEO_NETWORKS`, each at every size. frames: of a chunk. sizes: what stands behind a network's
    name -> side of a frame.
    """
    pictures: list[list[Shape]] = [
        [(1, 3, count, side, side) for side in sizes.values()] for count in (1, TEMPORAL_FACTOR)
    ]
    on_network("encoder")
    folded = fold_video_network(specialize_encoder(model.load("vae")), calibration)
    encoder = _write_pair(folded, lowering, pictures, folder, list(sizes))
    latent: list[Shape] = [entry.outputs[0].shape for entry in encoder[0]]
    latents = [(*shape[:2], 1 + (frames - 1) // TEMPORAL_FACTOR, *shape[3:]) for shape in latent]
    on_network("transformer")
    of_latents = [(shape[2], shape[3], shape[4]) for shape in latents]
    folded = fold_video_network(specialize_transformer(model.load("transformer"), *of_latents), calibration)
    shapes = {f"transformer{of}": [shape] for of, shape in zip(sizes, latents, strict=True)}
    transformer = write_network(folded, lowering, shapes, folder)
    # Or it would be held while the decoder is made.
    del folded
    on_network("decoder")
    folded = fold_video_network(specialize_decoder(model.load("vae")), calibration)
    decoder = _write_pair(folded, lowering, [latent, latent], folder, list(sizes))
    return [*encoder, transformer, *decoder]


def _write_pair(
    network: FoldedNetwork, lowering: Lowering, shapes: list[list[Shape]], folder: Path, sizes: Sequence[str]
) -> list[list[NetworkEntry]]:
    """The graph of a film's first frame, and that of what follows, at every size. shapes: of each, what it works on
    beside the memory.
    """
    names = [f"{network.name}_start{of}" for of in sizes]
    start = write_network(network, lowering, {name: [x] for name, x in zip(names, shapes[0], strict=True)}, folder)
    memory = [[info.shape for info in entry.outputs[1:]] for entry in start]
    names = [f"{network.name}_next{of}" for of in sizes]
    inputs = {name: [x, *before] for name, x, before in zip(names, shapes[1], memory, strict=True)}
    return [start, write_network(network, lowering, inputs, folder)]
