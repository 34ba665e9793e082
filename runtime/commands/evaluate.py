"""`intsr evaluate`: PSNR and SSIM of a folder of pictures, or of a film, against the originals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intsr.cli.console import common_options, emit_json, progress, say
from intsr.cli.options import refuse_given

if TYPE_CHECKING:
    from intsr.runtime.films.types import Frame
    from intsr.runtime.measure.metrics import Scores, SsimRule


@click.command(
    epilog="Example: intsr evaluate results/ originals/ --json; intsr evaluate film-x4.mp4 original.mp4",
    short_help="PSNR and SSIM of a folder of pictures, or of a film, against originals.",
)
@click.argument("sr_path", metavar="SR", type=click.Path(path_type=Path))
@click.argument("hr_path", metavar="HR", type=click.Path(path_type=Path))
@click.option(
    "--crop-border",
    "crop_border_px",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Pixels to cut off every side before PSNR and SSIM.",
)
@click.option(
    "--ssim",
    "ssim_rule",
    type=click.Choice(("pyiqa", "wang")),
    default="pyiqa",
    show_default=True,
    help="As papers on one-step diffusion report SSIM, or as it was published.",
)
@click.option("--allow-missing", is_flag=True, help="Leave out pictures that only one folder has.")
@click.option(
    "--metrics", "metrics_text", default="", metavar="NAMES", help="Also lpips, dists, niqe, musiq, maniqa, clipiqa."
)
@common_options
def evaluate(
    *,
    sr_path: Path,
    hr_path: Path,
    crop_border_px: int,
    ssim_rule: SsimRule,
    allow_missing: bool,
    metrics_text: str,
    as_json: bool,
) -> None:
    """Mean PSNR and SSIM of the pictures in folder SR against their originals in folder HR, on luma.

    Luma is BT.601 limited range, peak 255, unrounded for PSNR; SSIM has the usual Gaussian window, 11 x 11, sigma
    1.5. `--ssim pyiqa` rounds luma to whole levels and counts negative structure terms as 0, which gives the numbers
    that papers on one-step diffusion print (they use pyiqa); `--ssim wang` does neither, as the measure was
    published and as scikit-image computes it. Pictures are paired by exact name without the extension and must have
    the same size. --metrics needs the extra `metrics` (pyiqa, non-commercial licence) and looks at whole pictures.
    The PSNR of identical pictures is infinite: `inf` in the table, null in JSON, and so is a mean over one of them.

    SR and HR may be two films of the same size and frames. Their flicker is how much more SR changes from frame to
    frame than HR where HR stands still, in levels of 8-bit luma. Films need the extra `video`.
    """
    from dataclasses import replace

    from intsr.runtime.films.names import is_film
    from intsr.runtime.measure import metrics

    if is_film(sr_path) and is_film(hr_path):
        refuse_given(("allow_missing", "metrics_text"), "two films", "two folders")
        _evaluate_films(sr_path, hr_path, crop_border_px, ssim_rule, as_json)
        return
    # What can be wrong with the command line comes first: scoring may take minutes.
    scorer = metrics.PerceptualScorer(metrics.parse_metrics(metrics_text))
    pairing = metrics.pair_folders(sr_path, hr_path, allow_missing)
    left_out = len(pairing.only_sr) + len(pairing.only_hr)
    if left_out:
        say(f"left out, for want of a partner: {', '.join(pairing.only_sr + pairing.only_hr)}")
    scores = []
    for pair in progress(pairing.pairs, "Evaluating"):
        score = metrics.score_pair(*pair, crop_border_px, ssim_rule)
        scores.append(replace(score, perceptual=scorer.score(*pair)))
    mean = metrics.mean_scores(scores)
    if as_json:
        answer = {"images": len(scores), **_json_from_scores(mean), "ssim_rule": ssim_rule, "left_out": left_out}
        emit_json(answer | {"per_image": [{"name": score.name, **_json_from_scores(score)} for score in scores]})
    else:
        _print_table(scores, mean)


def _evaluate_films(sr_path: Path, hr_path: Path, crop_border_px: int, ssim_rule: SsimRule, as_json: bool) -> None:
    from intsr.runtime.measure.films import compare_films

    def show(frames: Iterator[Frame], total: int | None) -> Iterator[Frame]:
        return progress(frames, "Evaluating", total, unit="frames")

    found = compare_films(sr_path, hr_path, crop_border_px, ssim_rule, show)
    if as_json:
        psnr_y_db = found.psnr_y_db if math.isfinite(found.psnr_y_db) else None
        emit_json(asdict(found) | {"psnr_y_db": psnr_y_db, "ssim_rule": ssim_rule})
        return
    flicker = "no pixel stands still" if found.flicker is None else f"flicker {found.flicker:.3f} levels"
    click.echo(f"{found.frames} frames: PSNR-Y {found.psnr_y_db:.4f} dB, SSIM-Y {found.ssim_y:.4f}, {flicker}")


def _json_from_scores(scores: Scores) -> dict[str, Any]:
    # JSON has no infinity.
    psnr_y_db = scores.psnr_y_db if math.isfinite(scores.psnr_y_db) else None
    return {"psnr_y_db": psnr_y_db, "ssim_y": scores.ssim_y, **scores.perceptual}


def _print_table(scores: list[Scores], mean: Scores) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("picture", overflow="fold")
    for heading in ("PSNR-Y dB", "SSIM-Y", *mean.perceptual):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(score.name, *_cells(score))
    table.add_section()
    table.add_row(f"mean of {len(scores)}", *_cells(mean), style="bold")
    Console().print(table)


def _cells(scores: Scores) -> tuple[str, ...]:
    numbers = (f"{value:.4f}" for value in scores.perceptual.values())
    return (f"{scores.psnr_y_db:.4f}", f"{scores.ssim_y:.4f}", *numbers)
