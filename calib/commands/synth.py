"""`intsr synth`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from intsr.cli.console import Stopwatch, common_options, emit_json, say


@click.command(epilog="Example: intsr synth --arch sd21 -o sd21-random")
@click.option("--arch", type=click.Choice(["sd21", "wan2.1-1.3b"]), required=True, help="Architecture.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@common_options
def synth(arch: str, output: Path, seed: int, as_json: bool) -> None:
    """Write a full-size model of random weights, to measure speed and memory with.

    What it makes of pictures is noise; whatever is compiled from it says so.
    """
    from intsr.calib.models.families.architecture import ARCHITECTURES
    from intsr.calib.models.families.wan import VIDEO_ARCHITECTURES
    from intsr.calib.models.synth import write_synthetic_model
    from intsr.types import SYNTHETIC_NOTE

    watch = Stopwatch()
    written = write_synthetic_model(
        (ARCHITECTURES | VIDEO_ARCHITECTURES)[arch], output, seed, lambda name: say(f"making {name}")
    )
    counts = ", ".join(f"{part} {count:,}" for part, count in written.parameters.items())
    say(f"{output}: {counts} parameters, {written.size_bytes / 1e9:.2f} GB, {watch.seconds:.1f} s; {SYNTHETIC_NOTE}")
    if as_json:
        facts = {**asdict(written), "folder": str(output), "seconds": round(watch.seconds, 3)}
        emit_json({**facts, "synthetic": True, "note": SYNTHETIC_NOTE})
