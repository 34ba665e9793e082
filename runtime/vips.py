"""libvips, which encodes pictures row by row and reads 16-bit colour: imported here only, when first needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

# The networks need the cores; one thread that encodes keeps up with them.
_ENCODING_THREADS = 1


@cache
def vips() -> ModuleType:
    """`pyvips`, told to cache no results and to leave the cores alone."""
    pyvips = import_module("pyvips")
    pyvips.cache_set_max(0)
    pyvips.vips_lib.vips_concurrency_set(_ENCODING_THREADS)
    return pyvips
