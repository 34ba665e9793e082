"""`intsr export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intsr.cli.console import common_options, detail, emit_json, say, say_notes
from intsr.cli.options import (
    SeveralValuesCommand,
    TileSizes,
    given_options,
    passionsr_option,
    refuse_given,
    weight_options,
)
from intsr.errors import UsageError
from intsr.types import WeightOptions

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.open import ModelSource


@click.command(
    cls=SeveralValuesCommand,
    epilog="Example: intsr export demo --calibration demo-w8a8 --target cpu -o demo-onnx",
)
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration folder; full precision without.")
@passionsr_option
@click.option("--bits", default="w8a8", show_default=True, help="With --passionsr: wXaY.")
@click.option("--target", default="cpu", show_default=True, help="Target, or lowering, that the graphs are for.")
@click.option(
    "--plugins",
    type=click.Choice(["group-norm"]),
    multiple=True,
    help="tensorrt: operators that run with kernels of IntSR's own; compiling then needs nvcc.",
)
@click.option(
    "--pack", is_flag=True, help="onnxruntime: weights of 4 bits and fewer as uint4, two a byte (opset 21)."
)
@click.option(
    "--tile",
    "tiles_px",
    type=TileSizes(),
    metavar="PX[,PX]",
    default="128",
    show_default=True,
    help="Sides of the low-resolution tiles, the default first; several for target cpu.",
)
@click.option("--frames", type=int, help="Of a video model: frames in a chunk, 4n + 1.  [default: 9]")
@weight_options
@common_options
def export(
    *,
    model: str,
    output: Path,
    calibration: Path | None,
    official: tuple[Path, ...],
    bits: str,
    target: str,
    plugins: tuple[str, ...],
    pack: bool,
    tiles_px: tuple[int, ...],
    frames: int | None,
    weights: WeightOptions,
    as_json: bool,
) -> None:
    """Write encoder, UNet and decoder, those that MODEL has, as QDQ ONNX.

    Of a video model they are five: the transformer, and encoder and decoder of a film's first frame and of those
    behind it.

    MODEL is a folder in diffusers' format or of AdcSR's two files, a single SD 2.1 file, owner/name@REVISION of the
    Hugging Face hub, or the word demo.
    """
    from intsr.calib.calibration.files import load_calibration
    from intsr.calib.models.open import open_model
    from intsr.calib.models.video import open_video_model
    from intsr.calib.models.video_cost import check_frames, video_architecture
    from intsr.export.graphs import EXPORT_NAME, check_tiles
    from intsr.export.pipeline import export_model
    from intsr.export.video import DEFAULT_FRAMES, export_video_model
    from intsr.files import check_replaceable_folder, check_writable_place
    from intsr.targets import lowering_from_name, packed

    if calibration is not None and official:
        raise UsageError("--calibration, --passionsr", "both", "one of them")
    if "bits" in given_options() and not official:
        raise UsageError("--bits", "without --passionsr", "none: a calibration has its own")
    lowering = lowering_from_name(target, plugins)
    if pack:
        lowering = packed(lowering)
    check_replaceable_folder(output, marker=EXPORT_NAME)
    check_writable_place(output.parent)
    if video_architecture(model, None) is not None:
        refuse_given(("official", "plugins"), "a video model", "a picture model")
        weights.check_of_video()
        ranges = None if calibration is None else load_calibration(calibration)
        video = open_video_model(model, weights.context)
        length = DEFAULT_FRAMES if frames is None else frames
        check_frames(length)
        written = export_video_model(
            video, ranges, lowering, output, tiles_px=tiles_px, frames=length, on_network=detail
        )
    elif frames is not None:
        raise UsageError("--frames", f"{frames} of a picture model", "a video model")
    else:
        source = open_model(model, **weights.arguments)
        say_notes(source.notes)
        check_tiles(tiles_px, source.spec)
        ranges = _ranges(source, calibration, official, bits, tiles_px)
        written = export_model(
            source, ranges, lowering, tiles_px[0], output, on_network=detail, further_tiles=tiles_px[1:]
        )
    say(f"{output}: {written.bits}, lowered as {written.lowering}, tile {', '.join(map(str, tiles_px))}")
    if as_json:
        emit_json({"output": str(output), **asdict(written)})


def _ranges(
    source: ModelSource, calibration: Path | None, official: tuple[Path, ...], bits: str, tiles_px: tuple[int, ...]
) -> Calibration | None:
    from intsr.calib.calibration.files import load_calibration
    from intsr.calib.passionsr.import_checkpoint import check_one_tile, import_passionsr
    from intsr.types import Bits

    if official:
        ranges = import_passionsr(source.load(), official, Bits.parse(bits), tiles_px[0])
    elif calibration is not None:
        ranges = load_calibration(calibration)
    else:
        return None
    check_one_tile(ranges, tiles_px)
    return ranges
