"""`intsr compile VIDEO_MODEL`: what was asked for is checked, exported and built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intsr.calib.calibration.files import load_calibration
from intsr.calib.models.families.wan import VideoArchitecture, setting
from intsr.calib.models.video import VideoModelSource, open_video_model
from intsr.calib.models.video_cost import ChunkSize, costs_from_video_architecture
from intsr.calib.models.weights import files_of
from intsr.cli.console import say
from intsr.engines.compile.estimate import LIBRARIES_BYTES, CompileEstimate, NetworkEstimate
from intsr.errors import UsageError
from intsr.export.video import export_video_model
from intsr.manifest import Manifest
from intsr.targets import TARGETS, Target, lowering_from_name, target_from_name
from intsr.types import Bits, check_tile

DEFAULT_FRAMES = 9
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
    """A request whose model was found. latent_size: (frames, height, width)."""

    source: VideoModelSource
    target: Target
    tile_px: int
    size: ChunkSize
    latent_size: tuple[int, int, int]


def _prepare(request: VideoCompileRequest, architecture: VideoArchitecture) -> _Prepared:
    """Find the model, and all that can be wrong before long work. Raises UsageError, ModelError."""
    target = target_from_name(request.target)
    if not target.video:
        able = " or ".join(each.name for each in TARGETS if each.video)
        raise UsageError("--target", f"{target.name} for a video model", able)
    if (request.calibration is not None) != Bits.parse(request.bits).quantized:
        got = f"--bits {request.bits} {'and' if request.calibration else 'without'} a calibration"
        raise UsageError(request.model, got, "one of --calibration DIR, --bits fp")
    tile_px, *further = request.tiles_px or target.tiles[:1]
    if further:
        raise UsageError("--tile", f"{1 + len(further)} sizes for a video model", "one")
    source = open_video_model(request.model, request.context)
    factor = source.spec.upscale_factor
    check_tile(tile_px, factor, source.spec.size_multiple_px)
    size = ChunkSize(request.frames, tile_px * factor, tile_px * factor)
    return _Prepared(source, target, tile_px, size, size.latents(architecture))


def estimate_of_video(request: VideoCompileRequest, architecture: VideoArchitecture) -> CompileEstimate:
    """Each network with its work on one chunk; memory as in `estimate_compilation`. Raises ModelError, UsageError."""
    prepared = _prepare(request, architecture)
    source, target, size = prepared.source, prepared.target, prepared.size
    ranges = None if request.calibration is None else load_calibration(request.calibration)
    transformer, vae = costs_from_video_architecture(architecture, size)
    costs = {"encoder": vae.components[0], "transformer": transformer.components[1], "decoder": vae.components[1]}
    frames = (1, 3, size.frames, size.height_px, size.width_px)
    latents = (1, int(setting("vae", architecture.vae, "z_dim")), *prepared.latent_size)
    shapes = {"encoder": (frames, latents), "transformer": (latents, latents), "decoder": (latents, frames)}
    networks, once_bytes = list[NetworkEstimate](), 0.0
    for name, (given, made) in shapes.items():
        cost, precision, of_weight = costs[name], target.precision_words, target.float_bytes
        part = "transformer" if name == "transformer" else "vae"
        if ranges is not None and part in ranges.parts:
            precision, of_weight = f"{ranges.bits} in int8, the rest {precision}", 1
        networks.append(NetworkEstimate(name, prepared.tile_px, given, made, precision, cost.parameters, cost.macs))
        once_bytes += cost.parameters * of_weight * (1 if part == "transformer" else VAE_WEIGHTS_ON_DISK)
    engine_bytes = target.extra_bytes + round(once_bytes)
    files = {file: file.stat().st_size for network in source.networks.values() for file in files_of(network.path)}
    return CompileEstimate(
        model=source.spec.name,
        target=target.name,
        networks=tuple(networks),
        engine_bytes=engine_bytes,
        peak_bytes=LIBRARIES_BYTES + sum(files.values()) + 4 * max(network.parameters for network in networks),
        disk_bytes=round(once_bytes) + 2 * engine_bytes,
    )


def compile_video_model(
    request: VideoCompileRequest,
    architecture: VideoArchitecture,
    output: Path,
    build: Callable[[Path, Path], Manifest],
) -> Manifest:
    """Walk the whole way from a model to an engine.

    build: makes an engine file of an export folder (`compile_engine`). Nothing is left behind on failure, and
    `output` is then as it was. Raises what preparing, exporting and building raise.
    """
    target_from_name(request.target).check_installed()
    prepared = _prepare(request, architecture)
    ranges = None if request.calibration is None else load_calibration(request.calibration)
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        graphs = Path(folder) / "onnx"
        export_video_model(
            prepared.source,
            ranges,
            lowering_from_name(prepared.target.lowering),
            graphs,
            tile_px=prepared.tile_px,
            frames=request.frames,
            on_network=lambda name: say(f"exporting {name}"),
        )
        return build(graphs, output)
