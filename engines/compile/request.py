"""`intsr compile MODEL`: what was asked for is checked, calibrated where that is part of it, exported and built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intsr.calib.calibrate import Recipe, calibrate, parse_parts
from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import PASSIONSR, Calibration
from intsr.calib.data.pictures import usable_pictures
from intsr.calib.low_bits import low_bits_warning
from intsr.calib.models.open import ModelSource, open_model
from intsr.calib.passionsr.import_checkpoint import check_one_tile, import_passionsr
from intsr.cli.console import progress, say, say_notes
from intsr.engines.compile.estimate import CompileEstimate, estimate_compilation
from intsr.engines.verify.agreement import Verification
from intsr.engines.verify.check import Check
from intsr.engines.verify.reference import reference_from_calibration
from intsr.errors import UsageError
from intsr.export.pipeline import export_model, static_calibration
from intsr.manifest import Manifest
from intsr.runtime.pictures.reader import list_pictures
from intsr.targets import Target, lowering_from_name, target_from_name
from intsr.types import NO_WEIGHT_OPTIONS, Bits, PictureSpec, WeightOptions, check_tile, tile_step

METHOD = "maxmin+let"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """What an engine is made of: the command's options."""

    model: str
    target: str
    # At most one of these three says what to quantize by.
    calibration: Path | None = None
    images: Path | None = None
    official: tuple[Path, ...] = ()
    # `wXaY` or `fp`.
    bits: str = "w8a8"
    # As `parse_parts` takes it.
    parts: str = "unet,vae"
    # The default first; None for the target's own.
    tiles_px: tuple[int, ...] | None = None
    weights: WeightOptions = NO_WEIGHT_OPTIONS
    # Activations stay float.
    weight_only: bool = False
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request whose model was found. tiles_px: the default first."""

    request: CompileRequest
    source: ModelSource
    target: Target
    tiles_px: tuple[int, ...]


def _prepare(request: CompileRequest) -> _Prepared:
    """Find the model, and all that can be wrong before long work. Raises UsageError, ModelError."""
    given = [request.calibration, request.images, request.official, not Bits.parse(request.bits).quantized]
    sources = sum(map(bool, given))
    if sources != 1 and not (request.weight_only and sources == 0):
        raise UsageError(
            request.model,
            "no single source of ranges" if sources else f"--bits {request.bits} without ranges to quantize by",
            "one of --calibration DIR, --images DIR, --passionsr UNET.pth [VAE.pth], --bits fp",
        )
    target = target_from_name(request.target)
    source = open_model(request.model, **request.weights.arguments)
    return _Prepared(request, source, target, checked_tiles(request.tiles_px, target, source.spec))


def checked_tiles(given: tuple[int, ...] | None, target: Target, spec: PictureSpec) -> tuple[int, ...]:
    """Return the sizes asked for; else the family's own, and the target's as far as the networks take them.

    Raises UsageError.
    """
    first, *further = given or (spec.defaults.tile_px or target.tiles[0], *target.tiles[1:])
    if given is None:
        step = tile_step(spec.upscale_factor, spec.size_multiple_px)
        further = [tile for tile in further if tile % step == 0]
    for tile in (first, *further):
        check_tile(tile, spec.upscale_factor, spec.size_multiple_px)
    return (first, *further)


def estimate_of(request: CompileRequest) -> CompileEstimate:
    """See `estimate_compilation`. Raises CalibrationError, ModelError, UsageError."""
    prepared = _prepare(request)
    bits, parts = Bits.parse(request.bits), parse_parts(request.parts)
    tiles_px = _tiles(prepared, bool(request.official))
    if request.calibration is not None:
        ranges = load_calibration(request.calibration)
        ranges.check_model(prepared.source.digest, prepared.source.spec.name)
        bits, parts = ranges.bits, ranges.parts
        tiles_px = _tiles(prepared, ranges.folding == PASSIONSR)
        check_one_tile(ranges, tiles_px)
    elif request.official:
        parts = ("unet", "vae")[: len(request.official)]
    return estimate_compilation(
        request.model,
        prepared.source,
        target=prepared.target,
        bits=bits,
        parts=parts,
        tiles_px=tiles_px,
        loads_model=bool(request.images or request.official),
        weight_only=request.weight_only,
    )


def _tiles(prepared: _Prepared, is_passionsr: bool) -> tuple[int, ...]:
    """The sizes that are built, the default first. PassionSR's checkpoints fit one; asking for more is an error."""
    tiles_px = prepared.tiles_px
    return tiles_px[:1] if is_passionsr and prepared.request.tiles_px is None else tiles_px


def compile_model(
    request: CompileRequest, output: Path, build: Callable[[Path, Path], Manifest], check: Check | None
) -> tuple[Manifest, Verification | None]:
    """Walk the whole way from a model to an engine, which must pass the `check`.

    build: makes an engine file of an export folder (`compile_engine`). Nothing is left behind on failure, and
    `output` is then as it was. Raises what preparing, calibrating, exporting and building raise; VerificationError.
    """
    target = target_from_name(request.target)
    target.check_installed()
    pictures = [] if check is None else check.shown(target)
    prepared = _prepare(request)
    say_notes(prepared.source.notes)
    with tempfile.TemporaryDirectory(prefix="intsr-export-") as folder:
        graphs = Path(folder) / "onnx"
        ranges = _export(prepared, graphs)
        if check is None:
            # It maps a LoRA of up to a gigabyte, which nothing asks for any more.
            del prepared
            return build(graphs, output), None
        return check.put_in_place(
            partial(build, graphs),
            output,
            pictures,
            prepared.source.spec,
            lambda engine: reference_from_calibration(
                prepared.source.load(), ranges, engine.tile_px, request.weight_only
            ),
        )


def _export(prepared: _Prepared, folder: Path) -> Calibration | None:
    """Write the graphs into `folder`, which is new; returns what they were quantized with, None for nothing."""
    request = prepared.request
    ranges = _ranges(prepared, prepared.tiles_px[0])
    tile_px, *further = _tiles(prepared, ranges is not None and ranges.folding == PASSIONSR)
    if ranges is not None:
        check_one_tile(ranges, [tile_px, *further])
    name = (prepared.target.weight_only_lowering if request.weight_only else None) or prepared.target.lowering
    lowering = lowering_from_name(name, request.plugins)
    export_model(
        prepared.source,
        ranges,
        lowering,
        tile_px,
        folder,
        on_network=lambda name: say(f"exporting {name}"),
        further_tiles=further,
    )
    return ranges


def _ranges(prepared: _Prepared, tile_px: int) -> Calibration | None:
    request, source = prepared.request, prepared.source
    bits = Bits.parse(request.bits)
    if request.calibration is not None:
        return load_calibration(request.calibration)
    if request.official:
        return import_passionsr(source.load(), request.official, bits, tile_px)
    if request.images is not None:
        pictures = usable_pictures(list_pictures(request.images), None, lambda error: say(f"skipped: {error}"))
        recipe = Recipe(METHOD, bits, parse_parts(request.parts), tile_px)
        say(f"calibrating with {METHOD}, in one pass; intsr calibrate has methods that learn")
        model = source.load()
        calibration = calibrate(
            model, pictures, recipe, progress=lambda batches: progress(batches, "calibrating", total=len(pictures))
        )
        if (warning := low_bits_warning(model, calibration, pictures)) is not None:
            say(warning)
        return calibration
    if request.weight_only and bits.quantized:
        return static_calibration(source, bits, parse_parts(request.parts), tile_px)
    return None
