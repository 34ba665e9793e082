"""The targets, as data: every module of this folder with a `TARGET`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from intsr.errors import UsageError
from intsr.targets.lowering import LOWERINGS, PACKED_OF_LOWERING, PLUGINS_OF_LOWERING, Lowering
from intsr.targets.target import Target


def _listed() -> tuple[Target, ...]:
    names = sorted(module.name for module in iter_modules(__path__))
    modules = (import_module(f"{__name__}.{name}") for name in names)
    return tuple(module.TARGET for module in modules if hasattr(module, "TARGET"))


TARGETS = _listed()
TARGET_NAMES = tuple(target.name for target in TARGETS)


def target_from_name(name: str) -> Target:
    """Raises UsageError."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise UsageError("--target", repr(name), f"one of {', '.join(TARGET_NAMES)}")


def packed(lowering: Lowering) -> Lowering:
    """Return its form with weights of 4 bits where they fit. Raises UsageError where it has none."""
    if lowering.packed:
        return lowering
    if lowering.name not in PACKED_OF_LOWERING:
        expected = ", ".join(target.name for target in TARGETS if target.lowering in PACKED_OF_LOWERING)
        raise UsageError("--pack", f"together with graphs lowered as {lowering.name}", f"--target {expected}")
    return LOWERINGS[PACKED_OF_LOWERING[lowering.name]]


def lowering_from_name(name: str, plugins: tuple[str, ...] = ()) -> Lowering:
    """Return the lowering of that name or of that target. plugins: of PLUGINS, for its form with them.

    Raises UsageError.
    """
    targets = {target.name: target for target in TARGETS}
    lowering = LOWERINGS.get(targets[name].lowering if name in targets else name)
    if lowering is None:
        raise UsageError("--target", repr(name), f"one of {', '.join([*LOWERINGS, *targets])}")
    # A lowering's own name says which engine it is for; two targets may share one.
    if not plugins or lowering.plugins:
        return lowering
    if (name in targets and not targets[name].plugins) or lowering.name not in PLUGINS_OF_LOWERING:
        able = " or ".join(target.name for target in TARGETS if target.plugins)
        raise UsageError("--plugins", f"together with --target {name}", f"target {able}")
    return LOWERINGS[PLUGINS_OF_LOWERING[lowering.name]]
