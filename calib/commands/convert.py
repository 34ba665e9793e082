"""`intsr convert`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from intsr.cli.console import common_options, emit_json, say


@click.command(epilog="Example: intsr convert osediff.pkl -o osediff.safetensors")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write."
)
@common_options
def convert(source: Path, output: Path, as_json: bool) -> None:
    """Rewrite a pickle (.ckpt, .pth, .pkl) as safetensors.

    OSEDiff's LoRA, ldm checkpoints, and any other file of tensors: the same tensors, nested names joined by dots, and
    what is no tensor as metadata. A pickle that would run code is refused.
    """
    from intsr.calib.models.convert import convert as run

    written = run(source, output)
    kept = f" and {written.values} values" if written.values else ""
    say(f"{output}: {written.kind}, {written.tensors} tensors{kept}, {written.size_bytes / 1e6:.1f} MB")
    if as_json:
        emit_json({**asdict(written), "output": str(output)})
