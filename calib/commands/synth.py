"""`intsr synth`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from intsr.cli.console import Stopwatch, common_options, emit_json, say
from intsr.errors import UsageError
from intsr.types import FAMILY_NAMES, SYNTHETIC_NOTE


@click.command(
    epilog="Examples: intsr synth --arch sd21 -o sd21-random; intsr synth --family hypir -o HYPIR_random.pth"
)
@click.option("--arch", type=click.Choice(["sd21", "wan2.1-1.3b"]), help="Architecture, in diffusers' format.")
@click.option("--family", type=click.Choice(FAMILY_NAMES), help="Family, in the files that its authors publish.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Model folder to write; of a LoRA what is published: a file, or with omgsr a folder.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@common_options
def synth(arch: str | None, family: str | None, output: Path, seed: int, as_json: bool) -> None:
    """Write a full-size model of random weights, to measure speed and memory with.

    With --family what that family publishes, in the very format: adcsr a model folder, the others a LoRA, with which
    the model is `sd21-random --lora FILE`. What it makes of pictures is noise; whatever is compiled from it says so.
    """
    if (arch is None) == (family is None):
        raise UsageError("synth", "neither or both of --arch and --family", "one of them")
    if arch is not None or family == "adcsr":
        _synth_model(arch, output, seed, as_json)
    else:
        assert family is not None
        _synth_lora(family, output, seed, as_json)


def _synth_model(arch: str | None, output: Path, seed: int, as_json: bool) -> None:
    """arch: None for AdcSR's."""
    from intsr.calib.models.families.adcsr import ADCSR
    from intsr.calib.models.families.architecture import ARCHITECTURES
    from intsr.calib.models.families.wan import VIDEO_ARCHITECTURES
    from intsr.calib.models.synth import write_synthetic_adcsr, write_synthetic_model

    def tell(name: str) -> None:
        say(f"making {name}")

    watch = Stopwatch()
    if arch is None:
        written = write_synthetic_adcsr(ADCSR, output, seed, tell)
    else:
        written = write_synthetic_model((ARCHITECTURES | VIDEO_ARCHITECTURES)[arch], output, seed, tell)
    counts = ", ".join(f"{part} {count:,}" for part, count in written.parameters.items())
    say(f"{output}: {counts} parameters, {written.size_bytes / 1e9:.2f} GB, {watch.seconds:.1f} s; {SYNTHETIC_NOTE}")
    if as_json:
        facts = {**asdict(written), "folder": str(output), "seconds": round(watch.seconds, 3)}
        emit_json({**facts, "synthetic": True, "note": SYNTHETIC_NOTE})


def _synth_lora(family: str, output: Path, seed: int, as_json: bool) -> None:
    from intsr.calib.models.families.published import FAMILIES
    from intsr.calib.models.synth import write_synthetic_lora

    watch = Stopwatch()
    written = write_synthetic_lora(FAMILIES[family], output, seed)
    size = f"{written.parameters:,} parameters, {written.size_bytes / 1e9:.2f} GB, {watch.seconds:.1f} s"
    say(f"{output}: {FAMILIES[family].title}'s format, {size}; {SYNTHETIC_NOTE}")
    if as_json:
        facts = {**asdict(written), "path": str(output), "seconds": round(watch.seconds, 3)}
        emit_json({**facts, "synthetic": True, "note": SYNTHETIC_NOTE})
