"""Numbers as people read them: filters of the page's templates. None is a dash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intsr.runtime.measure.metrics import EXACT_DB

NONE = "–"


def decibels(value: float | None) -> str:
    if value is None:
        return NONE
    return "identical" if value >= EXACT_DB else f"{value:.2f} dB"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 1e6:.1f} MB"


def mebibytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    """Write a share of 1 as a percentage; what is not 0 never reads as 0."""
    if value is None:
        return NONE
    return "< 0.01 %" if 0 < value < 1e-4 else f"{value * 100:.2f} %"


def plain(value: Any) -> str:
    return NONE if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def fixed(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def times(value: float) -> str:
    return f"{value:.2f}×"


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (decibels, milliseconds, megabytes, mebibytes, share, plain, fixed, times)
}
