"""`intsr upscale`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intsr.console import common_options, emit_json, progress, say
from intsr.errors import EXIT_OUT_OF_MEMORY, EXIT_SOME_FAILED, UsageError
from intsr.types import COLOR_FIXES

if TYPE_CHECKING:
    from intsr.runtime.batch import Job
    from intsr.runtime.tiling import Tile
    from intsr.runtime.upscale_file import FileReport

_PATH = click.Path(path_type=Path)


@click.command(
    epilog="Example: intsr upscale model.engine photo.jpg -o photo-x4.png; "
    "intsr upscale model.engine holiday/ -r -o holiday-x4/ --skip-existing"
)
@click.argument("engine", type=_PATH)
@click.argument("inputs", type=_PATH, nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", type=_PATH, required=True, help="A picture for one input file, else a folder.")
@click.option("-r", "--recursive", is_flag=True, help="Subfolders too; their tree is repeated in the output folder.")
@click.option("--color-fix", type=click.Choice(COLOR_FIXES), help="Colours of the input. Default: the engine's.")
@click.option("--overlap", "overlap_px", type=int, help="Input pixels that tiles share. Default: the engine's.")
@click.option("--threads", type=int, help="Default: the library's own choice.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default="auto", help="Of what is not int.")
@click.option("--device", help="GPU engines: cuda:INDEX or a part of the GPU's name. Default: the first.")
@click.option(
    "--cuda-backend",
    type=click.Choice(["cuda-python", "pycuda"]),
    default="cuda-python",
    help="GPU engines: who talks to CUDA. Default: cuda-python.",
)
@click.option("--suffix", "name_suffix", default="", help="Put behind the name of each output, as in _x4.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["same", "png", "jpg", "webp", "tif", "bmp"]),
    default="same",
    help="Of outputs in a folder.",
)
@click.option("--skip-existing", is_flag=True, help="Leave outputs alone that are there already: resume a batch.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there already.")
@common_options
def upscale(
    engine: Path,
    inputs: tuple[Path, ...],
    output: Path,
    recursive: bool,
    color_fix: str | None,
    overlap_px: int | None,
    threads: int | None,
    precision: str,
    device: str | None,
    cuda_backend: str,
    name_suffix: str,
    output_format: str,
    skip_existing: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Upscale pictures, files or whole folders, with ENGINE.

    Pictures of any size, 8-bit or 16-bit grey, with transparency, EXIF, XMP and ICC profiles kept. A picture that
    fails does not stop the others; the exit code is then 1. With --json, one line a picture.
    """
    from intsr.runtime.batch import Naming, check_outputs, plan_jobs
    from intsr.runtime.engine import open_engine
    from intsr.runtime.upscale_file import FileReport, report_from_job

    if skip_existing and overwrite:
        raise UsageError("--skip-existing", "together with --overwrite", "one of them")
    jobs = plan_jobs(inputs, output, recursive, Naming(name_suffix, output_format))
    check_outputs(jobs, skip_existing, overwrite)
    reports = []
    with open_engine(engine, threads, precision, device, cuda_backend) as opened:
        _check_overlap(overlap_px, opened.tile_px)
        for job in _pictures(jobs):
            if skip_existing and job.output.exists():
                report = FileReport(str(job.source), str(job.output), "skipped")
            else:
                tiles = _tiles if len(jobs) == 1 else None
                report = report_from_job(opened, job, color_fix, overlap_px, tiles)
            reports.append(report)
            _show(report, as_json)
    _finish(reports)


def _check_overlap(overlap_px: int | None, tile_px: int) -> None:
    # Once and before any picture: the option is wrong, not the pictures.
    if overlap_px is not None and not 0 <= overlap_px < tile_px:
        raise UsageError("--overlap", f"{overlap_px} pixels", f"0 to {tile_px - 1}, below the engine's tile")


def _pictures(jobs: Sequence[Job]) -> Iterable[Job]:
    return progress(jobs, "Upscaling", len(jobs)) if len(jobs) > 1 else jobs


def _tiles(tiles: Sequence[Tile]) -> Iterable[Tile]:
    return progress(tiles, "Upscaling", len(tiles))


def _show(report: FileReport, as_json: bool) -> None:
    if as_json:
        emit_json(report.to_json())
    if report.status == "failed":
        click.echo(f"intsr: error: {report.error}", err=True)
    elif not as_json and report.status == "skipped":
        say(f"{report.input}: {report.output} is there already")
    elif not as_json:
        say(f"{report.input} -> {report.output} ({report.width}x{report.height}, {report.ms:.0f} ms)")
    for note in report.notes:
        say(f"{report.input}: note: {note}")


def _finish(reports: Sequence[FileReport]) -> None:
    failed = [report for report in reports if report.status == "failed"]
    if len(reports) > 1:
        counts = {status: sum(r.status == status for r in reports) for status in ("ok", "skipped", "failed")}
        say(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if failed:
        sys.exit(EXIT_OUT_OF_MEMORY if all(report.out_of_memory for report in failed) else EXIT_SOME_FAILED)
