"""Options of `intsr calibrate` that concern methods that train, and what is refused where it would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from intsr.cli.options import FiniteFloat
from intsr.errors import UsageError

DEFAULT_CROP_PX = 32
# Parameters that change something where a checkpoint is imported.
OF_IMPORT = frozenset(
    ("model", "output", "overwrite", "bits", "official", "tile_px", "context", "lora", "as_json", "quiet", "verbose")
)
# Parameters that change something where something is trained alone.
OF_TRAINING = frozenset(
    (
        *("crop_px", "crops", "batch", "block_steps", "joint_steps", "rate", "cache", "recompute", "mixed"),
        *("device", "seed", "restart"),
    )
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the methods that train."""
    decorators = (
        click.option(
            "--crop",
            "crop_px",
            type=click.IntRange(1),
            help=f"Side of a crop.  [default: {DEFAULT_CROP_PX}, or --tile where that is smaller]",
        ),
        click.option("--crops", type=click.IntRange(1), default=48, show_default=True, help="Crops to train on."),
        click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops a step."),
        click.option("--block-steps", type=click.IntRange(0), default=12, show_default=True, help="Steps a block."),
        click.option(
            "--joint-steps", type=click.IntRange(0), default=120, show_default=True, help="Steps a network."
        ),
        click.option("--rate", type=FiniteFloat(0, 100, True, True), default=1.0, help="Factor on all rates."),
        click.option(
            "--cache",
            type=click.Choice(["ram", "disk", "none"]),
            default="ram",
            show_default=True,
            help="Where a block's inputs are kept; none: computed again for every step.",
        ),
        click.option("--recompute", is_flag=True, help="Joint steps: compute activations twice, in less memory."),
        click.option("--mixed", is_flag=True, help="bfloat16 where that is safe: for GPUs."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True, help="Of crops, batches and samples."),
        click.option("--restart", is_flag=True, help="Forget what an interrupted run has done."),
        click.option("--dry-run", is_flag=True, help="Measure one block, estimate time and memory, write nothing."),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def check_source(has_images: bool, is_import: bool) -> None:
    """Raises UsageError: pictures to learn from, or files to import; with files nothing else is learned."""
    if has_images == is_import:
        raise UsageError("--images, --passionsr", "both or neither", "one of them")
    if is_import:
        for name, option in _given().items():
            if name not in OF_IMPORT:
                raise UsageError(option, "together with --passionsr", "--images: there is nothing to learn")


def check_training_options(method: str, trains: bool, dry_run: bool) -> None:
    """Refuse what was given and would change nothing. Raises UsageError."""
    given = _given()
    for name in sorted(OF_TRAINING & given.keys()) if not trains else ():
        expected = "a method that trains, or no such option"
        raise UsageError(given[name], f"together with --method {method}, which takes one pass", expected)
    for name in ("restart", "overwrite") if dry_run else ():
        if name in given:
            raise UsageError(given[name], "together with --dry-run", "one of them: a dry run writes nothing")


def _given() -> dict[str, str]:
    """Parameters of the command that were written out: name -> option."""
    context = click.get_current_context()
    return {
        parameter.name or "": parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
