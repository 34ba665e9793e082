"""`intsr upscale`."""

from __future__ import annotations

import os
import re
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intsr.cli.console import common_options, progress, say
from intsr.cli.options import FiniteFloat
from intsr.errors import UsageError, printable
from intsr.runtime.commands.upscale_shows import (
    finish,
    frame_progress,
    show_plan,
    show_report,
    tile_progress_of,
)
from intsr.runtime.commands.upscale_values import OutputFormat, Rate, Seconds, Times
from intsr.types import COLOR_FIXES

if TYPE_CHECKING:
    from intsr.manifest import Manifest
    from intsr.runtime.batch.jobs import Job
    from intsr.runtime.cluster.run import ClusterBatch

# Not asked whether it is readable: one that is not must not stop the others.
_PATH = click.Path(path_type=Path, readable=False)
_AUTO, _USUAL_BACKEND, _SAME_FORMAT = "auto", "cuda-python", "same"


def _list_devices(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from intsr.runtime.backends.compatibility import list_devices

    devices, why_no_gpu = list_devices()
    for name, description in devices.items():
        click.echo(f"{name}  {description}")
    if why_no_gpu:
        say(why_no_gpu)
    context.exit()


@click.command(
    epilog="Example: intsr upscale model.engine photo.jpg -o photo-x4.png; "
    "intsr upscale model.engine holiday/ -r -o holiday-x4/ --skip-existing; "
    "convert photo.heic png:- | intsr upscale model.engine - -o - --format jpg > photo-x4.jpg"
)
@click.argument("engine", type=_PATH)
@click.argument("inputs", type=click.Path(readable=False), nargs=-1, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=click.Path(readable=False),
    required=True,
    help="A picture for one input file, else a folder; with a / at its end always a folder. -: stdout.",
)
@click.option("-r", "--recursive", is_flag=True, help="Subfolders too; their tree is repeated in the output folder.")
@click.option(
    "-s",
    "--scale",
    "--outscale",
    "outscale",
    type=Times(),
    metavar="TIMES",
    help="Size of the output, such as 2 or 2x: a smaller file in the same time. Default: the engine's factor.",
)
@click.option("--color-fix", type=click.Choice(COLOR_FIXES), help="Colours of the input. Default: the engine's.")
@click.option(
    "--tile",
    default=_AUTO,
    show_default=True,
    metavar="auto|PX",
    help="Of the sizes the engine holds; auto: what costs least and fits into memory.",
)
@click.option("--overlap", "overlap_px", type=int, help="Input pixels that tiles share. Default: the engine's.")
@click.option("--batch-tiles", type=int, metavar="N", help="Tiles computed at once; what the engine was built for.")
@click.option(
    "--memory",
    metavar="LIMIT",
    help="For the whole process, with --ray each worker, such as 4G. Default: what is free, or its share.",
)
@click.option("--threads", type=int, help="Default: the library's own choice.")
@click.option("--precision", type=click.Choice(["auto", "f32", "bf16"]), default=_AUTO, help="Of what is not int.")
@click.option(
    "--device",
    help="GPU engines: cuda:INDEX or a part of the GPU's name. Default: the first. Target onnxruntime: cuda, "
    "tensorrt or tensorrt-rtx, each with :INDEX. Default: the CPU.",
)
@click.option("--copy-engine", is_flag=True, help="Hold the file in memory: it may be overwritten meanwhile.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep compiled graphs in the user's cache folder.")
@click.option(
    "--list-devices", is_flag=True, is_eager=True, expose_value=False, callback=_list_devices, help="Show and exit."
)
@click.option(
    "--cuda-backend",
    type=click.Choice(["cuda-python", "pycuda"]),
    help="GPU engines: who talks to CUDA. Default: cuda-python.",
)
@click.option("--name", "template", metavar="TEMPLATE", help="Of outputs in a folder: {stem} {ext} {scale} {engine}.")
@click.option("--suffix", "name_suffix", default="", help="Put behind the name of each output, as in _x4.")
@click.option(
    "--format",
    "output_format",
    type=OutputFormat(),
    default=_SAME_FORMAT,
    help="Of outputs in a folder, and of stdout, which is PNG without it.",
)
@click.option("--quality", type=int, metavar="1-100", help="Of JPEG, WebP and AVIF. Default: 95, 95, 90.")
@click.option("--codec", metavar="NAME", help="Of films: an encoder of FFmpeg's. Default: libx264; 10 bits: libx265.")
@click.option(
    "--crf", type=click.IntRange(0, 63), help="Of films: the encoder's quality, 0 the best. Default: 16 to 20."
)
@click.option("--preset", help="Of films: the encoder's speed, such as slow.")
@click.option("--fps", type=Rate(), help="Of numbered pictures as a film. Default: 25.")
@click.option("--start", "start_s", type=Seconds(), metavar="SECONDS", help="Of films: begin there.")
@click.option("--duration", "duration_s", type=Seconds(), metavar="SECONDS", help="Of films.")
@click.option("--strip", is_flag=True, help="Drop EXIF, XMP and ICC instead of keeping them.")
@click.option("--skip-existing", is_flag=True, help="Leave outputs alone that are there already: resume a batch.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there already.")
@click.option("--dry-run", is_flag=True, help="Say what would be made, in how many tiles; make nothing.")
@click.option("--shard", metavar="I/N", help="Only part I of N of the batch, for several processes or machines.")
@click.option(
    "--ray",
    "ray_address",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="On a Ray cluster: HOST:PORT, auto or local. Default: $RAY_ADDRESS, else local, started for this.",
)
@click.option(
    "--ray-actors", type=click.IntRange(1), metavar="N", help="Workers, an open engine each. Default: what fits."
)
@click.option(
    "--cpus-per-actor", type=click.IntRange(1), metavar="N", help="Of each worker, also its threads. Default: 2."
)
@click.option(
    "--gpus-per-actor",
    type=FiniteFloat(0),
    metavar="N",
    help="Of each worker; may be 0.5. Default: 1 for GPU engines.",
)
@common_options
def upscale(
    *,
    engine: Path,
    inputs: tuple[str, ...],
    output: str,
    recursive: bool,
    outscale: float | None,
    color_fix: str | None,
    tile: str,
    overlap_px: int | None,
    batch_tiles: int | None,
    memory: str | None,
    threads: int | None,
    precision: str,
    device: str | None,
    copy_engine: bool,
    no_cache: bool,
    cuda_backend: str | None,
    template: str | None,
    name_suffix: str,
    output_format: str,
    quality: int | None,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    fps: Fraction | None,
    start_s: Fraction | None,
    duration_s: Fraction | None,
    strip: bool,
    skip_existing: bool,
    overwrite: bool,
    dry_run: bool,
    shard: str | None,
    ray_address: str | None,
    ray_actors: int | None,
    cpus_per_actor: int | None,
    gpus_per_actor: float | None,
    as_json: bool,
) -> None:
    """Upscale pictures and films, files, folders or patterns, with ENGINE.

    Pictures of any size, 8 or 16 bits, grey or colour, with transparency, EXIF, XMP and ICC profiles kept. A picture
    that fails does not stop the others; the exit code is then 1. With --json, one line a picture. The input - is a
    picture from stdin; a file of that name is ./-.

    Films keep their sound, subtitles, chapters and times; frames/%06d.png stands for numbered pictures, on either
    side. A film that was interrupted goes on where it was when the same command is given again. In folders, films
    are passed over. Films need the extra `video`.
    """
    from intsr.bundle import read_manifest
    from intsr.files import remove_stale_parts
    from intsr.runtime.backends.protocol import SessionOptions
    from intsr.runtime.batch.checks import check_effects, check_engine_comes_first
    from intsr.runtime.batch.jobs import check_existing, check_outputs, plan_jobs, shard_of
    from intsr.runtime.batch.memory import bytes_from_text
    from intsr.runtime.batch.naming import Naming
    from intsr.runtime.batch.options import FileOptions
    from intsr.runtime.batch.pipes import open_pipes
    from intsr.runtime.batch.plan import cheapest_tile, picture_sizes
    from intsr.runtime.batch.run import Batch
    from intsr.runtime.cluster.addresses import remote_outputs
    from intsr.runtime.cluster.options import check_beside_ray, cluster_options
    from intsr.runtime.engine import open_engine_with
    from intsr.runtime.films.types import FilmOptions

    cluster = cluster_options(ray_address, ray_actors, cpus_per_actor, gpus_per_actor)
    check_engine_comes_first(engine, [Path(item) for item in inputs])
    if not inputs:
        raise click.MissingParameter(param_hint="'INPUT...'", param_type="argument", ctx=click.get_current_context())
    if skip_existing and overwrite:
        raise UsageError("--skip-existing", "together with --overwrite", "one of them")
    options = FileOptions(
        color_fix=color_fix,
        overlap_px=overlap_px,
        outscale=outscale,
        quality=quality,
        keep_metadata=not strip,
        memory_bytes=bytes_from_text(memory) if memory is not None else None,
        overwrite=overwrite,
        film=FilmOptions(
            codec=codec,
            crf=crf,
            preset=preset,
            start_s=start_s or Fraction(0),
            duration_s=duration_s,
            **({"fps": fps} if fps else {}),
        ),
    )
    tile_px = _tile_from_text(tile)
    manifest = read_manifest(engine)
    others = {"--json": as_json, "--skip-existing": skip_existing, "--overwrite": overwrite, "--dry-run": dry_run}
    # Removed when the command ends, however it does.
    pipes = click.get_current_context().with_resource(open_pipes(inputs, output, output_format, others))
    paths, output = pipes.inputs, pipes.output
    remote = remote_outputs(output, cluster is not None)
    if cluster is not None:
        piped = {"the input -": pipes.source is not None, "-o -": pipes.target is not None}
        check_beside_ray(cluster, piped, device, manifest.target)
    naming = Naming(_template(template, name_suffix), output_format, outscale or manifest.upscale_factor, engine.stem)
    kind = {
        "recursive": recursive,
        "must_be_folder": output.endswith(("/", os.sep)),
        "resuming": skip_existing,
        "sees_frames": manifest.chunk is not None,
    }
    jobs = plan_jobs(paths, Path(output), naming=naming, note=lambda text: say(printable(text)), **kind)
    given = {
        "--name": template is not None,
        "--suffix": bool(name_suffix),
        "--format": output_format != _SAME_FORMAT and pipes.target is None,
        "-r": recursive,
        "--quality": quality is not None,
        "--cuda-backend": cuda_backend is not None,
        "--no-cache": no_cache,
        "--codec": codec is not None,
        "--crf": crf is not None,
        "--preset": preset is not None,
        "--fps": fps is not None,
        "--start": start_s is not None,
        "--duration": duration_s is not None,
    }
    check_effects(given, jobs, paths, output=Path(output), manifest=manifest)

    there = remote.existing() if remote is not None else set()

    def skipped(job: Job) -> bool:
        exists = job.output.exists() if remote is None else remote.of(job.output) in there
        return skip_existing and not job.problem and exists

    # Of the whole batch: a shard takes the tiles that all of it would have.
    chosen = cheapest_tile(manifest, picture_sizes(jobs), overlap_px) if tile_px is None else tile_px
    jobs = shard_of(jobs, shard) if shard is not None else jobs
    if not jobs:
        say(f"shard {shard}: nothing to do")
        return
    if remote is None:
        check_outputs(jobs, skip_existing, overwrite)
    else:
        places = [remote.of(job.output) for job in jobs if not job.problem]
        check_existing([place for place in places if place in there], skip_existing, overwrite)
    session = SessionOptions(
        threads,
        precision,
        device,
        cuda_backend or _USUAL_BACKEND,
        tile_px=chosen,
        copy=copy_engine,
        cache=not no_cache,
    )
    _check_for_engine(manifest.at_tile(chosen), overlap_px, batch_tiles)

    def named(text: str) -> str:
        return pipes.named(text) if remote is None else remote.named(text)

    if dry_run:
        show_plan([job for job in jobs if not skipped(job)], manifest.at_tile(chosen), options, named, as_json)
        return
    remove_stale_parts(job.output for job in jobs if not job.problem)
    work: Batch | ClusterBatch
    if cluster is not None:
        from intsr.runtime.cluster.run import ClusterBatch

        work = ClusterBatch(
            cluster,
            engine=engine,
            manifest=manifest,
            session=session,
            options=options,
            auto_tile=tile_px is None,
            resuming=skip_existing,
            remote=remote,
        )
    else:
        work = Batch(
            open_engine_with(engine, session), options, auto_tile=tile_px is None, frame_progress=frame_progress
        )
    one = len(jobs) == 1
    tile_progress = tile_progress_of(jobs[0], options, manifest.upscale_factor, pipes) if one else None
    # A film shows how far it is itself, where it is made here.
    by_itself = one or (cluster is None and any(job.is_film for job in jobs))
    with closing(work), closing(work.reports(jobs, tile_progress, skipped)) as made:
        shown = made if by_itself else progress(made, "Upscaling", len(jobs))
        reports = [show_report(report.renamed(named), as_json) for report in shown]
    pipes.deliver()
    finish(reports)


def _tile_from_text(text: str) -> int | None:
    if text == _AUTO:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise UsageError("--tile", repr(text), "auto, or a number of pixels")
    return int(text)


def _template(template: str | None, suffix: str) -> str:
    if template is None:
        return "{stem}" + suffix.replace("{", "{{").replace("}", "}}") + "{ext}"
    if suffix:
        raise UsageError("--suffix", "together with --name", "one of them")
    return template


def _check_for_engine(manifest: Manifest, overlap_px: int | None, batch_tiles: int | None) -> None:
    from intsr.runtime.tiles.grid import plan_tiles

    # Once and before any picture: the option is wrong, not the pictures.
    if overlap_px is not None:
        plan_tiles(1, 1, manifest.tile_px, overlap_px)
    built = manifest.networks[0].input.shape[0]
    if batch_tiles is not None and batch_tiles != built:
        raise UsageError("--batch-tiles", str(batch_tiles), f"{built}, which the engine was built for")
