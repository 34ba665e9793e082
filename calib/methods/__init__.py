"""One file a quantization method, each with `METHOD`; the folder is the list of them."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intsr.calib.learn.method import Method


@cache
def methods(kind: str | None = None) -> dict[str, Method]:
    """Return every method by its name, those first that take one pass. kind: those alone that know such models."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: list[Method] = sorted(
        (module.METHOD for module in modules), key=lambda method: (method.trains, method.name)
    )
    return {method.name: method for method in found if kind is None or kind in method.kinds}


def method_from_name(name: str, symmetric: bool = False, rank: int | None = None) -> Method:
    """Return the method, on symmetric grids and with branches of another rank where that is asked for."""
    method = methods()[name]
    return replace(method, symmetric=symmetric, rank=method.rank if rank is None else rank)
