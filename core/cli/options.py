"""Options that several commands share, and the check that none is given where it would change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce, wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from intsr.errors import UsageError
from intsr.types import WeightOptions

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


class TileSizes(click.ParamType[tuple[int, ...]]):
    """`128` or `128,64`: sides of low-resolution tiles, each once, in the order given."""

    name = "sizes"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        sizes = tuple(int(part) for part in parts if part.strip().isascii() and part.strip().isdigit())
        if len(sizes) < len(parts) or 0 in sizes or len(set(sizes)) < len(sizes):
            self.fail(f"{value!r} is not one or more different sizes in pixels, for example 128,64", param, ctx)
        return sizes


class FiniteFloat(click.FloatRange):
    """A number between bounds; `nan`, which no bound keeps out, and `inf` are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class SeveralValues(click.Option):
    """An option that takes one value or two: `--files a.pth b.pth`, which click alone does not know.

    Use with `multiple=True` in a `SeveralValuesCommand`; `--files a.pth --files b.pth` says the same.
    """


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


def passionsr_option(function: F) -> F:
    """--passionsr (`official`): PassionSR's calibrated checkpoint in the place of a calibration."""
    return click.option(
        "--passionsr",
        "official",
        cls=SeveralValues,
        multiple=True,
        type=PATH,
        metavar="UNET.pth [VAE.pth]",
        help="PassionSR's calibrated checkpoints, behind MODEL; --bits says what they were made for.",
    )(function)


class WeightPair(click.ParamType[tuple[float, float]]):
    """`1,1` or `1.2,0`: two numbers."""

    name = "weights"

    def convert(
        self, value: str | tuple[float, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            first, second = map(float, value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers, for example 1.2,0", param, ctx)
        return first, second


def _refuse_guidance(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        got = "two networks at each step: one for each prompt"
        raise UsageError(parameter.opts[0], got, "one network, of one --prompt")


def weight_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a model takes from other files and words, as `weights`, a `WeightOptions`."""

    @wraps(function)
    def gather(
        *,
        context: Path | None,
        lora: Path | None,
        prompt: str | None,
        pisa_weights: tuple[float, float] | None,
        **others: Any,
    ) -> Any:
        return function(weights=WeightOptions(context, lora, prompt, pisa_weights), **others)

    options = [
        click.option("--context", type=PATH, help="Prompt context, safetensors with `context`."),
        click.option("--prompt", metavar="TEXT", help="Through MODEL's text encoder.  [default: the empty prompt]"),
        click.option(
            "--lora", type=PATH, help="LoRA of OSEDiff, HYPIR, PiSA-SR or OMGSR-S, merged into the weights of SD 2.1."
        ),
        click.option(
            "--pisa-weights", type=WeightPair(), metavar="PIX,SEM", help="PiSA-SR's: 1,1 or X,0.  [default: 1,1]"
        ),
        # Known, so that the reason can be told.
        *(
            click.option(name, hidden=True, expose_value=False, callback=_refuse_guidance)
            for name in ("--negative-prompt", "--guidance-scale")
        ),
    ]
    return reduce(lambda inner, option: option(inner), reversed(options), gather)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--tile (`tile_px`), and `weight_options`, wherever a model is turned into something."""
    tile = click.option(
        "--tile",
        "tile_px",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Side of the low-resolution tile.",
    )
    return tile(weight_options(function))


def given_options() -> dict[str, str]:
    """Parameters of the running command that were written out: name -> option, `tile_px` -> `--tile` for example."""
    context = click.get_current_context()
    return {
        parameter.name or "": parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }


def refuse_given(names: Iterable[str], beside: str, expected: str, fix: str = "") -> None:
    """Raise UsageError for the first of these parameters that was written out: beside `beside` it changes nothing."""
    given = given_options()
    for name in names:
        if name in given:
            raise UsageError(given[name], f"together with {beside}", expected, fix)
