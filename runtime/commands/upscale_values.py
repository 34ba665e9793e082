"""Kinds of values that options of `intsr upscale` take."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import click

_LEAST_FPS, _MOST_FPS, _MOST_DENOMINATOR = Fraction(1, 1000), 1000, 100_000


class Times(click.ParamType[float]):
    """A number of times, as in `2.5`, `2x` or `x2`."""

    name = "times"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        number = text[:-1] if text.endswith("x") else text.removeprefix("x")
        try:
            return float(number)
        except ValueError:
            self.fail(f"{value!r} is not a number of times, for example 2 or 2x", param, ctx)


class Rate(click.ParamType[Fraction]):
    """Frames a second, as in `25`, `23.976` or `30000/1001`."""

    name = "rate"

    def convert(self, value: str | Fraction, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        try:
            rate = Fraction(value).limit_denominator(_MOST_DENOMINATOR)
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if not _LEAST_FPS <= rate <= _MOST_FPS:
            self.fail(f"{value!r} is not a number of frames a second, for example 25 or 30000/1001", param, ctx)
        return rate


class Seconds(click.ParamType[Fraction]):
    """Seconds, exactly as they are written: `0.2` is a fifth."""

    name = "seconds"

    def convert(self, value: str | Fraction, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number of seconds, for example 12.5", param, ctx)


class OutputFormat(click.Choice[str]):
    """The formats that there are. They are asked for with the libraries that they need, and so only when needed."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> Sequence[str]:  # type: ignore[override]
        from intsr.runtime.batch.naming import OUTPUT_FORMATS

        return OUTPUT_FORMATS
