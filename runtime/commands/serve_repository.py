"""`intsr serve-repository`."""

from __future__ import annotations

import sys
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
@click.option("--python", help="On the server's machine, the one that has intsr. Default: the one that runs this.")
@click.option("--overwrite", is_flag=True, help="Replace a repository that an earlier call wrote.")
@common_options
def serve_repository(
    engines: tuple[Path, ...], output: Path, python: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write a repository with a model for each ENGINE, which takes pictures, as arrays or as files, and returns them.

    The model is called as the file is. Where the engine is of target tensorrt, each of its networks is a model, too.
    The server starts a process for each, of a Python that has intsr.
    """
    from intsr.runtime.serve.repository import write_repository

    repository, notes = write_repository(engines, output, python or sys.executable, overwrite)
    for note in notes:
        say(f"note: {note}")
    if as_json:
        emit_json({"folder": str(output), "models": list(repository.models)})
    for name in repository.models:
        say(str(output / name))
