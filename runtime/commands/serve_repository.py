"""`intsr serve-repository`."""

from __future__ import annotations

from pathlib import Path

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH


@click.command(
    epilog="Example: intsr serve-repository photos.engine -o models && tritonserver --model-repository=models",
    short_help="Write a model repository for Triton Inference Server.",
)
@click.argument("engines", type=PATH, nargs=-1, required=True, metavar="ENGINE...")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write: the repository.")
@click.option("--overwrite", is_flag=True, help="Replace a repository that an earlier call wrote.")
@common_options
def serve_repository(engines: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool) -> None:
    """Write a repository with a model for each ENGINE, which takes pictures, as arrays or as files, and returns them.

    The model is called as the file is. Where the engine is of target tensorrt, each of its networks is a model, too.
    The server's Python needs intsr; config.pbtxt names the folder where it is here.
    """
    from intsr.runtime.serve.repository import write_repository

    repository, notes = write_repository(engines, output, overwrite)
    for note in notes:
        say(f"note: {note}")
    if as_json:
        emit_json({"folder": str(output), "models": list(repository.models)})
    for name in repository.models:
        say(f"{output / name}")
