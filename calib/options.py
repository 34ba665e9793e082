"""Options wherever something is calibrated, most of them of the methods that train, and what would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import click

from intsr.cli.options import PATH, FiniteFloat, given_options, refuse_given
from intsr.errors import UsageError

if TYPE_CHECKING:
    from intsr.calib.learn.method import Method

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_CROP_PX = 32
# Parameters that change something where a checkpoint is imported.
OF_IMPORT = frozenset(
    (
        *("model", "output", "overwrite", "bits", "official", "tile_px", "context", "lora", "prompt", "pisa_weights"),
        *("as_json", "quiet", "verbose"),
    )
)
# Parameters that change something where something is trained alone.
TRAINING_OPTIONS = (
    *("rank", "crop_px", "crops", "batch", "block_steps", "joint_steps", "rate", "cache", "recompute", "mixed"),
    *("lpips", "device", "seed"),
)


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in their order."""
    return lambda function: reduce(lambda inner, decorate: decorate(inner), reversed(decorators), function)


def symmetric_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--symmetric, of every method."""
    return click.option("--symmetric", is_flag=True, help="Activation grids around 0: no shift in TensorRT's graph.")(
        function
    )


def _crop_px() -> int:
    """Only the default gives way to the tile: a crop that was asked for and does not fit is an error."""
    return min(DEFAULT_CROP_PX, click.get_current_context().params["tile_px"])


def learning_options(crops: int) -> Callable[[F], F]:
    """Options of everything that learns from crops. crops: the default."""
    return together(
        click.option(
            "--crop",
            "crop_px",
            type=click.IntRange(1),
            default=_crop_px,
            help=f"Side of a crop.  [default: {DEFAULT_CROP_PX}, or --tile where that is smaller]",
        ),
        click.option("--crops", type=click.IntRange(1), default=crops, show_default=True, help="Crops to train on."),
        click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops a step."),
        click.option("--rate", type=FiniteFloat(0, 100, True, True), default=1.0, help="Factor on all rates."),
        click.option(
            "--lpips",
            type=PATH,
            help='Weights of LPIPS, the state of lpips.LPIPS(net="vgg"), to compare pictures by.  [default: none; '
            "structure and edges]",
        ),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True, help="Of crops, batches and samples."),
    )


training_options = together(
    click.option(
        "--rank",
        type=click.IntRange(0),
        help="Of the float branch beside each layer, qartsr, svdquant and lsgquant; 0: none.  [default: 16, 32, 32]",
    ),
    click.option("--block-steps", type=click.IntRange(0), default=12, show_default=True, help="Steps a block."),
    click.option("--joint-steps", type=click.IntRange(0), default=120, show_default=True, help="Steps a network."),
    click.option(
        "--cache",
        type=click.Choice(["ram", "disk", "none"]),
        default="ram",
        show_default=True,
        help="Where a block's inputs are kept; none: computed again for every step.",
    ),
    click.option("--recompute", is_flag=True, help="Whole networks: compute activations twice, in less memory."),
    click.option("--mixed", is_flag=True, help="bfloat16 where that is safe: for GPUs."),
    learning_options(48),
)


def check_source(has_images: bool, is_import: bool) -> None:
    """Raises UsageError: pictures to learn from, or files to import; with files nothing else is learned."""
    if has_images == is_import:
        raise UsageError("--images, --passionsr", "both or neither", "one of them")
    if is_import:
        others = [name for name in given_options() if name not in OF_IMPORT]
        refuse_given(others, "--passionsr", "--images: there is nothing to learn")


def check_training_options(method: Method, is_import: bool, dry_run: bool) -> None:
    """Refuse what was given and would change nothing. Raises UsageError."""
    if not method.trains and not is_import:
        beside = f"--method {method.name}, which takes one pass"
        refuse_given(sorted((*TRAINING_OPTIONS, "restart")), beside, "a method that trains, or no such option")
    if method.reverse:
        refuse_given(("cache",), f"--method {method.name}", "no such option: it keeps no block's inputs")
    if dry_run:
        refuse_given(("restart", "overwrite"), "--dry-run", "one of them: a dry run writes nothing")
        refuse_given(("budget",), "--dry-run", "--bits: bits of a budget are measured first")
