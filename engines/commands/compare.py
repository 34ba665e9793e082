"""`intsr compare`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.calib.options import TRAINING_OPTIONS, symmetric_option, training_options
from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH, model_options
from intsr.errors import EXIT_SOME_FAILED, IntsrError, UsageError

if TYPE_CHECKING:
    from intsr.engines.compare.types import Comparison
    from intsr.runtime.measure.metrics import PerceptualScorer

DEFAULT_METRICS = ("lpips", "dists", "musiq")
JSON_NAME, TABLE_NAME, DRAWING_NAME = "compare.json", "compare.md", "compare.svg"
COLUMNS = {
    "psnr_y_db": ("PSNR-Y dB", ".3f"),
    "psnr_y_loss_db": ("loss dB", ".3f"),
    "ssim_y": ("SSIM-Y", ".4f"),
    "psnr_to_fp_db": ("to fp dB", ".2f"),
    "distance_to_fp": ("distance to fp", ".4f"),
}
COST_COLUMNS = {
    "engine_bytes": ("engine MB", ".2f"),
    "calibration_s": ("calibration s", ".1f"),
    "peak_bytes": ("peak GB", ".2f"),
}
UNITS = {"engine_bytes": 1e6, "peak_bytes": 1e9}


@click.command(
    epilog="Example: intsr compare demo --methods maxmin,passionsr --bits w8a8,w6a6 --calibration photos/ "
    "--images lr/ --hr originals/ -o comparison/"
)
@click.argument("model")
@click.option("--methods", required=True, help="Methods of intsr calibrate, separated by commas.")
@click.option("--bits", default="w8a8", show_default=True, help="Bits of weights and activations: w8a8,w6a6.")
@click.option(
    "--parts", multiple=True, default=("unet,vae",), show_default=True, help="What is quantized; may be given again."
)
@click.option(
    "--calibration",
    "calibration_images",
    type=PATH,
    required=True,
    help="Folder of low-resolution pictures to calibrate on.",
)
@click.option("--images", type=PATH, required=True, help="Folder of pictures to upscale.")
@click.option("--hr", type=PATH, required=True, help="Folder of their originals.")
@click.option("--allow-missing", is_flag=True, help="Leave out pictures that only one folder has.")
@click.option("-o", "--output", type=PATH, help="Folder for the table and the calibrations.")
@click.option("--keep-pictures", is_flag=True, help="Keep every row's pictures in FOLDER/pictures.")
@click.option("--restart", is_flag=True, help="Calibrate anew, whatever is there.")
@click.option("--limit", type=click.IntRange(1), help="Calibrate on at most so many pictures.")
@model_options
@click.option("--color-fix", type=click.Choice(["wavelet", "adain", "none"]), default="none", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "f32", "bf16"]),
    default="f32",
    show_default=True,
    help="Of what is not integer.",
)
@click.option(
    "--metrics",
    "metrics_text",
    metavar="NAMES",
    help=f"As in intsr evaluate. [default: {','.join(DEFAULT_METRICS)} where the extra is installed]",
)
@symmetric_option
@training_options
@common_options
def compare(
    *,
    methods: str,
    bits: str,
    parts: tuple[str, ...],
    images: Path,
    hr: Path,
    allow_missing: bool,
    output: Path | None,
    keep_pictures: bool,
    metrics_text: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """One table of methods and settings, each upscaling through the engine compiled for the CPU.

    MODEL is as intsr calibrate takes it. Each setting is calibrated in a process of its own. With -o, calibrations
    (and their logs) stay in FOLDER/calibrations: the same command, started again after an interruption, goes on from
    there. Pictures and originals are paired, and PSNR-Y and SSIM-Y computed, as in intsr evaluate by default. The
    first rows are bicubic and full precision; beside fewer than 8 bits there is always a row of W8A8, which is as
    fast. `to fp` is the PSNR on RGB between a row's pictures and full precision's, `distance` how different the two
    look (1 - SSIM and edges, at three scales); `loss` what is lost of its PSNR-Y.
    """
    from intsr.engines.compare.types import Comparison, recipes_from_options
    from intsr.files import check_writable_folder
    from intsr.runtime.measure.metrics import pair_folders

    if keep_pictures and output is None:
        raise UsageError("--keep-pictures", "no -o", "a folder to keep them in", "give -o FOLDER")
    options = {"symmetric": settings.pop("symmetric")}
    training = {name: settings.pop(name) for name in TRAINING_OPTIONS}
    recipes = recipes_from_options(methods, bits, parts, settings.pop("tile_px"), **options, **training)
    pairing = pair_folders(images, hr, allow_missing)
    job = Comparison(recipes=recipes, pairs=pairing.pairs, **settings)
    if output is not None:
        check_writable_folder(output)
    report = {
        "model": job.model,
        "images": len(job.pairs),
        "tile_px": job.tile_px,
        "color_fix": job.color_fix,
        "precision": job.precision,
        "options": options,
        "training": training if any(recipe.trains for recipe in job.recipes) else {},
        "rows": _rows(job, output, keep_pictures, _scorer(metrics_text)),
    }
    _finish(report, output, as_json)


# Behind the command's own options in --help.
def _rows(
    job: Comparison, output: Path | None, keep_pictures: bool, scorer: PerceptualScorer
) -> list[dict[str, Any]]:
    from intsr.engines.compare.run import run_comparison
    from intsr.engines.compare.types import Places

    with tempfile.TemporaryDirectory(prefix="intsr-compare-") as folder:
        scratch = Path(folder)
        kept = output or scratch
        places = Places(kept / "calibrations", (kept if keep_pictures else scratch) / "pictures", scratch)
        return [row.to_mapping() for row in run_comparison(job, places, scorer)]


def _scorer(metrics_text: str | None) -> PerceptualScorer:
    from intsr.runtime.measure.metrics import PerceptualScorer, parse_metrics

    if metrics_text is not None:
        return PerceptualScorer(parse_metrics(metrics_text))
    try:
        return PerceptualScorer(DEFAULT_METRICS)
    except IntsrError as error:
        say(f"no columns {', '.join(DEFAULT_METRICS)}: {error}")
        return PerceptualScorer(())


def _finish(report: dict[str, Any], output: Path | None, as_json: bool) -> None:
    from intsr.files import atomic_path

    table = table_from_rows(report["rows"])
    if output is not None:
        files = {JSON_NAME: json.dumps(report, indent=1, allow_nan=False), TABLE_NAME: table}
        if (drawn := _drawing(report["rows"])) is not None:
            files[DRAWING_NAME] = drawn
        for name, text in files.items():
            with atomic_path(output / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    if as_json:
        emit_json(report)
    else:
        click.echo(table)
    failed = sum(row["error"] is not None for row in report["rows"])
    if failed:
        say(f"{failed} of {len(report['rows'])} rows failed")
        sys.exit(EXIT_SOME_FAILED)


def _drawing(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Size against quality; None where matplotlib is not installed, which is said."""
    from intsr.engines.report.plots.sizes import size_against_quality
    from intsr.errors import MissingLibraryError

    measured = [row for row in rows if row["error"] is None and row["engine_bytes"] and row["psnr_to_fp_db"]]
    try:
        return size_against_quality(measured) if measured else None
    except MissingLibraryError as error:
        say(f"no {DRAWING_NAME}: {error}")
        return None


def table_from_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: `-` where there is no number, `failed` in rows that failed."""
    known = {"method", "bits", "parts", "error", *COLUMNS, *COST_COLUMNS}
    perceptual = {name: (name.upper(), ".4f") for name in rows[0] if name not in known}
    columns = {**COLUMNS, **perceptual, **COST_COLUMNS}
    headings = ["method", "bits", "parts", *(heading for heading, _ in columns.values())]
    lines = [headings, ["---"] * 3 + ["---:"] * len(columns)]
    for row in rows:
        cells = [_cell(row, name, form) for name, (_, form) in columns.items()]
        lines.append([row["method"], row["bits"], ",".join(row["parts"]) or "-", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    if row["error"] is not None:
        return "failed"
    value = row[name]
    return "-" if value is None else format(value / UNITS.get(name, 1), form)
