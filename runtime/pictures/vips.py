"""libvips, which encodes pictures row by row and reads 16-bit colour: imported here only, when first needed."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

# The networks need the cores; one thread that encodes keeps up with them.
_ENCODING_THREADS = 1
_SYSTEM = "system error: "


@cache
def vips() -> ModuleType:
    """Import `pyvips`, told to cache no results and to leave the cores alone."""
    # What it logs it also raises; from its own threads it would come as lines on stderr.
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    pyvips = import_module("pyvips")
    pyvips.cache_set_max(0)
    pyvips.vips_lib.vips_concurrency_set(_ENCODING_THREADS)
    return pyvips


def problem_from_vips(error: Exception) -> str:
    """Return one line: what the system said where it was the system, else all that libvips said, each thing once."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    systems = [line.removeprefix(_SYSTEM) for line in lines if line.startswith(_SYSTEM) and "Unknown" not in line]
    return systems[0] if systems else "; ".join(dict.fromkeys(lines[1:] or lines))
