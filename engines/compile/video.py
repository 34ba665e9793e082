"""`intsr compile VIDEO_MODEL`: what was asked for is checked, exported and built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import TEMPORAL_FACTOR, VideoArchitecture, bits_of_video_site, setting
from intsr.calib.models.video import VideoModelSource, open_video_model
from intsr.calib.models.video_cost import ChunkSize, costs_from_video_architecture
from intsr.calib.models.weights import files_of
from intsr.cli.console import say
from intsr.engines.compile.estimate import (
    LIBRARIES_BYTES,
    CompileEstimate,
    NetworkEstimate,
    build_peak_bytes,
    stored_bytes,
)
from intsr.engines.verify.agreement import Verification
from intsr.engines.verify.check import Check
from intsr.engines.verify.reference import video_reference
from intsr.errors import UsageError
from intsr.export.graphs import EXTERNAL_DATA_BYTES, check_tiles
from intsr.export.video import DEFAULT_FRAMES, export_video_model
from intsr.manifest import Manifest
from intsr.targets import Target, lowering_from_name, target_from_name
from intsr.types import Bits

# The most that building a network of the VAE for a CPU takes, of a value of its widest layers: measured at Wan's own
# width, frames of 128 and 256 pixels.
BUILD_BYTES_PER_VALUE = 160
# Resident of the command while another process builds, measured at 1.3 B parameters.
WAITING_BYTES = 1_300_000_000
# Of a graph whose weights are in it: the model, its bytes, and what is made on the way. Integers are made of float
# weights that go meanwhile, and take no more than those did.
GRAPH_COPIES = 5.5
# The graph of a film's first frame has one of three taps of each of the VAE's kernels, the other one all three.
VAE_WEIGHTS_ON_DISK = 4 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCompileRequest:
    """What an engine of a video model is made of: the command's options.

    calibration: None for full precision, which bits then say. tiles_px: None for the target's first. frames: of a
    chunk, 4n + 1.
    """

    model: str
    target: str
    bits: str
    calibration: Path | None = None
    tiles_px: tuple[int, ...] | None = None
    frames: int = DEFAULT_FRAMES
    context: Path | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request whose model was found. tiles_px: the default first."""

    source: VideoModelSource
    target: Target
    tiles_px: tuple[int, ...]


def _prepare(request: VideoCompileRequest, architecture: VideoArchitecture) -> _Prepared:
    """Find the model, and all that can be wrong before long work. Raises UsageError, ModelError."""
    target = target_from_name(request.target)
    if (request.calibration is not None) != Bits.parse(request.bits).quantized:
        got = f"--bits {request.bits} {'and' if request.calibration else 'without'} a calibration"
        raise UsageError(request.model, got, "one of --calibration DIR, --bits fp")
    tiles_px = request.tiles_px or target.tiles[:1]
    source = open_video_model(request.model, request.context)
    check_tiles(tiles_px, source.spec)
    for tile_px in tiles_px:
        # Raises for a chunk that the networks cannot take.
        _size(request, source, tile_px).latents(architecture)
    return _Prepared(source, target, tiles_px)


def _size(request: VideoCompileRequest, source: VideoModelSource, tile_px: int) -> ChunkSize:
    side_px = tile_px * source.spec.upscale_factor
    return ChunkSize(request.frames, side_px, side_px)


def estimate_of_video(request: VideoCompileRequest, architecture: VideoArchitecture) -> CompileEstimate:
    """Each network with its work on one chunk; memory as in `estimate_compilation`. Raises ModelError, UsageError."""
    prepared = _prepare(request, architecture)
    source, target, (tile_px, *further_px) = prepared.source, prepared.target, prepared.tiles_px
    ranges = None if request.calibration is None else load_calibration(request.calibration)
    first = _networks(request, architecture, prepared, tile_px, ranges)
    further = [each for side in further_px for each in _networks(request, architecture, prepared, side, ranges)]
    encoder, transformer, decoder = first
    of_vae = stored_bytes(encoder, target) + stored_bytes(decoder, target)
    once_bytes = round(stored_bytes(transformer, target) + VAE_WEIGHTS_ON_DISK * of_vae)
    engine_bytes = target.extra_bytes + once_bytes * (1 if target.sharing else len(prepared.tiles_px))
    files = {file: file.stat().st_size for network in source.networks.values() for file in files_of(network.path)}
    frames_px = min(request.frames, TEMPORAL_FACTOR) * (tile_px * source.spec.upscale_factor) ** 2
    width = setting("vae", architecture.vae, "decoder_base_dim") or setting("vae", architecture.vae, "base_dim")
    at_work = frames_px * width * BUILD_BYTES_PER_VALUE if target.measures_inference else 0
    return CompileEstimate(
        model=source.spec.name,
        target=target.name,
        networks=(*first, *further),
        engine_bytes=engine_bytes,
        peak_bytes=max(
            LIBRARIES_BYTES + sum(files.values()) + max(_export_bytes(each, first, target) for each in first),
            build_peak_bytes(transformer, target, WAITING_BYTES),
            build_peak_bytes(decoder, target, WAITING_BYTES) + at_work,
        ),
        disk_bytes=once_bytes * len(prepared.tiles_px) + 2 * engine_bytes,
    )


def _export_bytes(network: NetworkEstimate, networks: Sequence[NetworkEstimate], target: Target) -> int:
    """What exporting one network takes beside the files. networks: all three; the VAE's two are one module."""
    of_part = [
        each.parameters for each in networks if (each.name == "transformer") == (network.name == "transformer")
    ]
    size_bytes, is_float = stored_bytes(network, target), network.precision == target.precision_words
    return 4 * sum(of_part) + round(GRAPH_COPIES * size_bytes * (is_float and size_bytes <= EXTERNAL_DATA_BYTES))


def _networks(
    request: VideoCompileRequest,
    architecture: VideoArchitecture,
    prepared: _Prepared,
    tile_px: int,
    ranges: Calibration | None,
) -> list[NetworkEstimate]:
    """Encoder, transformer and decoder of a whole chunk."""
    size = _size(request, prepared.source, tile_px)
    transformer, vae = costs_from_video_architecture(architecture, size)
    costs = {"encoder": vae.components[0], "transformer": transformer.components[1], "decoder": vae.components[1]}
    frames = (1, 3, size.frames, size.height_px, size.width_px)
    latents = (1, int(setting("vae", architecture.vae, "z_dim")), *size.latents(architecture))
    shapes = {"encoder": (frames, latents), "transformer": (latents, latents), "decoder": (latents, frames)}
    networks = []
    for name, (given, made) in shapes.items():
        part, precision = "transformer" if name == "transformer" else "vae", prepared.target.precision_words
        if ranges is not None and part in ranges.parts:
            bits = ranges.bits if part == "transformer" else Bits(*bits_of_video_site("vae.", ranges.bits))
            precision = f"{bits} in int8, the rest {precision}"
        cost = costs[name]
        networks.append(NetworkEstimate(name, tile_px, given, made, precision, cost.parameters, cost.macs))
    return networks


def compile_video_model(
    request: VideoCompileRequest,
    architecture: VideoArchitecture,
    output: Path,
    build: Callable[[Path, Path], Manifest],
    check: Check | None,
) -> tuple[Manifest, Verification | None]:
    """Walk the whole way from a model to an engine, which must pass the `check`.

    build: makes an engine file of an export folder (`compile_engine`). Nothing is left behind on failure, and
    `output` is then as it was. Raises what preparing, exporting and building raise; VerificationError.
    """
    target = target_from_name(request.target)
    target.check_installed()
    clips = [] if check is None else check.shown(target, is_video=True)
    prepared = _prepare(request, architecture)
    ranges = None if request.calibration is None else load_calibration(request.calibration)
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        graphs = Path(folder) / "onnx"
        export_video_model(
            prepared.source,
            ranges,
            lowering_from_name(prepared.target.lowering),
            graphs,
            tiles_px=prepared.tiles_px,
            frames=request.frames,
            on_network=lambda name: say(f"exporting {name}"),
        )
        if check is None:
            return build(graphs, output), None
        source = prepared.source
        return check.put_in_place(
            partial(build, graphs),
            output,
            clips,
            source.spec,
            lambda engine: video_reference(source, ranges, engine.tile_px, request.frames),
        )
