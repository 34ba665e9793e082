"""What `intsr compile MODEL` was asked for: checked, calibrated where that is part of it, and exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intsr.calib.calibrate import Recipe, calibrate, parse_parts
from intsr.calib.calibration.files import load_calibration
from intsr.calib.calibration.types import PASSIONSR, Calibration
from intsr.calib.data.pictures import list_pictures, usable_pictures
from intsr.calib.low_bits import low_bits_warning
from intsr.calib.models.open import ModelSource, open_model
from intsr.calib.passionsr.import_checkpoint import check_one_tile, import_passionsr
from intsr.cli.console import progress, say
from intsr.engines.compile.estimate import CompilePlan, compile_plan
from intsr.errors import UsageError
from intsr.export.fold.weight_only import static_calibration
from intsr.export.graphs import check_tile, tile_step
from intsr.export.pipeline import export_model
from intsr.targets import Target, target_from_name
from intsr.targets.lowering import lowering_from_name
from intsr.types import Bits

if TYPE_CHECKING:
    from intsr.types import ModelSpec

METHOD = "maxmin+let"


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """The command's options. calibration, images, official: at most one of them. bits: `wXaY` or `fp`. parts: as
    `parse_parts` takes it. tiles_px: None for the target's own. weight_only: activations stay float.
    """

    model: str
    target: str
    calibration: Path | None = None
    images: Path | None = None
    official: tuple[Path, ...] = ()
    bits: str = "w8a8"
    parts: str = "unet,vae"
    tiles_px: tuple[int, ...] | None = None
    context: Path | None = None
    lora: Path | None = None
    weight_only: bool = False
    plugins: tuple[str, ...] = ()

    @property
    def quantizes(self) -> bool:
        return self.calibration is not None or Bits.parse(self.bits).quantized


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose model was found. tiles_px: the default first."""

    request: CompileRequest
    source: ModelSource
    target: Target
    tiles_px: tuple[int, ...]


def prepare(request: CompileRequest) -> Prepared:
    """Everything that can be wrong before long work. Raises UsageError, ModelError, MissingLibraryError."""
    given = [request.calibration, request.images, request.official, not Bits.parse(request.bits).quantized]
    sources = sum(map(bool, given))
    if sources != 1 and not (request.weight_only and sources == 0):
        raise UsageError(
            request.model,
            "no single source of ranges" if sources else f"--bits {request.bits} without ranges to quantize by",
            "one of --calibration DIR, --images DIR, --passionsr UNET.pth [VAE.pth], --bits fp",
        )
    target = target_from_name(request.target)
    source = open_model(request.model, request.context, request.lora)
    return Prepared(request, source, target, checked_tiles(request.tiles_px, target, source.spec))


def checked_tiles(given: tuple[int, ...] | None, target: Target, spec: ModelSpec) -> tuple[int, ...]:
    """What was asked for, else the target's own as far as the networks take them. Raises UsageError."""
    first, *further = given or target.tiles
    if given is None:
        step = tile_step(spec.upscale_factor, spec.size_multiple_px)
        further = [tile for tile in further if tile % step == 0]
    for tile in (first, *further):
        check_tile(tile, spec.upscale_factor, spec.size_multiple_px)
    return (first, *further)


def plan_of(prepared: Prepared) -> CompilePlan:
    """See `compile_plan`. Raises CalibrationError, ModelError, UsageError."""
    request = prepared.request
    bits, parts = Bits.parse(request.bits), parse_parts(request.parts)
    if request.calibration is not None:
        ranges = load_calibration(request.calibration)
        bits, parts = ranges.bits, ranges.parts
    elif request.official:
        parts = ("unet", "vae")[: len(request.official)]
    return compile_plan(
        request.model,
        prepared.source,
        prepared.target,
        bits,
        parts,
        prepared.tiles_px,
        loads_model=bool(request.images or request.official),
        weight_only=request.weight_only,
    )


def export_request(prepared: Prepared, folder: Path) -> Calibration | None:
    """Write the graphs into `folder`, which is new; returns what they were quantized with, None for nothing.

    Raises what calibrating, importing and exporting raise.
    """
    request, (tile_px, *further) = prepared.request, prepared.tiles_px
    ranges = _ranges(prepared, tile_px)
    if ranges is not None and ranges.folding == PASSIONSR:
        # It fits one size only: no further ones unless they were asked for, which is an error.
        further = further if request.tiles_px is not None else []
        check_one_tile(ranges, [tile_px, *further])
    name = (prepared.target.weight_only_lowering if request.weight_only else None) or prepared.target.lowering
    lowering = lowering_from_name(name, request.plugins)
    export_model(prepared.source, ranges, lowering, tile_px, folder, lambda name: say(f"exporting {name}"), further)
    return ranges


def _ranges(prepared: Prepared, tile_px: int) -> Calibration | None:
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
        calibration = calibrate(model, pictures, recipe, lambda batches: _watched(batches, pictures))
        warning = low_bits_warning(model, calibration, pictures)
        if warning is not None:
            say(warning)
        return calibration
    if request.weight_only and bits.quantized:
        return static_calibration(source, bits, parse_parts(request.parts), tile_px)
    return None


def _watched(batches: Any, pictures: Sequence[Path]) -> Any:
    return progress(batches, "calibrating", total=len(pictures))
