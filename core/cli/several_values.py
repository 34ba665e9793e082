"""Options that take one value or two, one after the other: `--files a.pth b.pth`, which click alone does not know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


class SeveralValues(click.Option):
    """Use with `multiple=True`; `--files a.pth --files b.pth` says the same."""


class SeveralValuesCommand(click.Command):
    """A command with such options. As the second only a file of the first one's kind is taken: .pth after .pth."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name for option in self.params if isinstance(option, SeveralValues) for name in option.opts}
        return super().parse_args(ctx, spread_values(args, names))


def spread_values(args: Sequence[str], names: set[str]) -> list[str]:
    """`--files a.pth b.pth` -> `--files a.pth --files b.pth`, for every option in `names`."""
    spread: list[str] = []
    for i, value in enumerate(args):
        follows = i >= 2 and args[i - 2] in names and not value.startswith("-")
        if follows and Path(value).suffix and Path(value).suffix == Path(args[i - 1]).suffix:
            spread.append(args[i - 2])
        spread.append(value)
    return spread


def passionsr_option(function: Any) -> Any:
    """--passionsr (`official`): an official calibrated checkpoint in the place of a calibration."""
    return click.option(
        "--passionsr",
        "official",
        cls=SeveralValues,
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="UNET.pth [VAE.pth]",
        help="PassionSR's calibrated checkpoints, behind MODEL; --bits says what they were made for.",
    )(function)
