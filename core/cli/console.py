"""Output of every command: JSON on stdout, words and progress on stderr, as -q and -v ask for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

# 0 quiet, 1 normal, 2 verbose: set once by the options of the command that runs.
_verbosity = 1
# What is drawn on the terminal now: lines go above it.
_bar: Progress | None = None
# Where there is no terminal, so often a line says how far it got.
_LINE_EVERY_S = 30.0
_now = time.monotonic


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    global _verbosity
    # Called for both options of every command, given or not: what an earlier command of this process set is over.
    if value:
        _verbosity = 0 if parameter.name == "quiet" else 2
        context.meta[__name__] = True
    elif not context.meta.get(__name__):
        _verbosity = 1


def common_options(function: F) -> F:
    """--json (passed as `as_json`), -q and -v."""
    flag = partial(click.option, is_flag=True, expose_value=False, callback=_set_verbosity)
    quiet, verbose = flag("-q", "--quiet", help="Errors only."), flag("-v", "--verbose", help="Details.")
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there.")
    return as_json(quiet(verbose(function)))


def is_verbose() -> bool:
    """Tell whether -v was given."""
    return _verbosity >= 2


def on_terminal() -> bool:
    """Tell whether somebody sees stderr; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def tell(message: str) -> None:
    """A line for people, on stderr, -q or not; above the progress bar where one is drawn."""
    if _bar is None:
        click.echo(message, err=True)
    else:
        _above_bar(_bar, message)


def say(message: str) -> None:
    """A line for people, on stderr; silent with -q."""
    if _verbosity >= 1:
        tell(message)


def say_notes(notes: Iterable[str]) -> None:
    """Say what somebody should know of what they gave, a line each."""
    for note in notes:
        say(f"note: {note}")


def detail(message: str) -> None:
    """A line on stderr that only -v shows."""
    if _verbosity >= 2:
        tell(message)


def emit_json(value: Any) -> None:
    """Write one JSON value on one line of stdout."""
    text = json.dumps(value, allow_nan=False)
    if _bar is not None and sys.stdout is not None and sys.stdout.isatty():
        # The same screen, which the bar would be in the way of.
        _above_bar(_bar, text)
    else:
        click.echo(text)


def _above_bar(bar: Progress, message: str) -> None:
    # click would write to the terminal itself, into the line of the bar.
    bar.console.print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def _drawn(*columns: ProgressColumn) -> Iterator[Progress]:
    global _bar
    from rich.console import Console
    from rich.progress import Progress

    before = _bar
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        _bar = bar
        try:
            yield bar
        finally:
            _bar = before


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Iterate with a progress bar and ETA on stderr where that is a terminal, with a line now and then elsewhere.

    unit: as in `frames`: how many there are a second is shown as well.
    """
    if _verbosity < 1:
        yield from items
    elif on_terminal():
        with _drawn(*_columns(unit)) as bar:
            yield from bar.track(items, total, description=description)
    else:
        yield from _with_lines(
            items, description, len(items) if total is None and isinstance(items, Sized) else total, unit
        )


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    if not unit:
        return ()
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn

    class Speed(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:.2f} {unit}/s" if task.speed else ""

    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn()


def _with_lines(items: Iterable[T], description: str, total: int | None, unit: str = "") -> Iterator[T]:
    start = told = _now()
    for count, item in enumerate(items, 1):
        yield item
        now = _now()
        if now - told < _LINE_EVERY_S or count == total:
            continue
        told = now
        speed = f", {count / (now - start):.2f} {unit}/s" if unit else ""
        if total is None:
            say(f"{description}: {count} done{speed}")
        else:
            left_s = (now - start) / count * max(total - count, 0)
            say(f"{description}: {count} of {total}{speed}, about {duration(left_s)} left")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def meter(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar with ETA that is moved by hand: call with how far it got and a word about it.

    On stderr where that is a terminal, silent elsewhere.
    """
    if _verbosity < 1 or not on_terminal():
        yield lambda count, note: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _drawn(*usual, TextColumn("{task.fields[note]}")) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda count, note: bar.update(task, advance=count, note=note)


class Stopwatch:
    """Wall time in seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start
