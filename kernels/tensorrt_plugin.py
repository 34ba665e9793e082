"""GroupNorm, SiLU, LET and Quantize as TensorRT plugins: quick-deployable, compiled ahead of time.

`register_plugins` tells TensorRT's Python API about two operators, which the ONNX parser then finds by their names
and their namespace. While an engine is built, TensorRT asks for their kernels as PTX (ours, compiled by nvcc) and for
how to launch them, and puts both into the plan: whoever runs the plan needs neither this module nor nvcc.

Inputs x (N, C, H, W) float16, then gamma, beta, shift, multiplier (C,) float32; output int8 or float16 like x.

Source: tensorrt.plugin's own documentation (register, autotune, aot_impl). A kernel's parameters are the inputs'
addresses, then the numbers, then the output's. No scratch memory, no second launch, no cluster and no more than 48 KB
of shared memory are documented, so that the kernels ask for none of it: a cluster is compiled into its kernel, and
where there are no clusters a group's blocks do without one another.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from intsr.errors import BuildError
from intsr.kernels.build import ptx_from_source
from intsr.kernels.launches.group_norm_plugin import (
    NAMESPACE,
    OPERATORS,
    SOURCE,
    VECTORS,
    PluginNorm,
    plugin_launch,
    takes_last,
)

# The operators' numbers, in the order that TensorRT passes them in.
ATTRIBUTES = {"groups": int, "epsilon": float, "activation": int, "lowest": int, "highest": int}
# Ways to run one layer, by TensorRT's numbers for them, which are positive; it measures them while it builds.
TACTICS = {1: "block", 2: "cluster", 3: "shared"}
_CLUSTERS_FROM, _PTX_ARCHITECTURES = (9, 0), (80, 90)


def ptx_architecture(capability: tuple[int, int], every_ampere: bool = False) -> int:
    """Return the PTX's architecture: with clusters from 9.0 up. every_ampere: the plan is for older GPUs, too."""
    return _PTX_ARCHITECTURES[capability >= _CLUSTERS_FROM and not every_ampere]


def ptx_of_kernel(ptx: bytes, kernel: str) -> bytes:
    """Return the file without its other kernels: TensorRT keeps one copy a layer. Raises BuildError."""
    head, *entries = ptx.split(b"\n.visible .entry ")
    for entry in entries:
        if entry.startswith(kernel.encode() + b"("):
            return head + b"\n.visible .entry " + entry
    raise BuildError(f"{SOURCE}.cu", f"no kernel {kernel} in its PTX")


@functools.cache
def _ptx(architecture: int) -> bytes:
    return ptx_from_source(SOURCE, architecture)


@functools.cache
def register_plugins(trt: ModuleType, architecture: int) -> None:
    """Register both operators, once a process. architecture: of the PTX, see `ptx_architecture`.

    Raises BuildError where TensorRT has no ahead-of-time plugins.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise BuildError("TensorRT", f"version {trt.__version__}", "10.9 or newer, for ahead-of-time plugins")
    plugin = import_module(f"{trt.__name__}.plugin")
    for operator, output in OPERATORS.items():
        _register(trt, plugin, f"{NAMESPACE}::{operator}", output, architecture)


def _register(trt: Any, plugin: Any, plugin_id: str, output: str, architecture: int) -> None:
    """tensorrt.plugin reads what it passes from the functions' signatures: they are given theirs here."""
    desc = plugin.TensorDesc
    inputs = dict.fromkeys(("x", *VECTORS), desc) | ATTRIBUTES

    def describe(x: Any, *vectors: Any, **attributes: Any) -> Any:
        out = x.like()
        out.dtype = trt.int8 if output == "codes" else trt.float16
        return out

    def tune(x: Any, *others: Any) -> list[Any]:
        return _combinations(plugin, int(x.shape[1]), output, architecture)

    def compile_ahead(x: Any, *others: Any) -> tuple[str, bytes, Any, Any]:
        groups, epsilon, activation, lowest, highest, _, tactic = others[len(VECTORS) :]
        norm = PluginNorm(groups, epsilon, bool(activation), lowest, highest)
        layout = "linear" if x.format == trt.TensorFormat.LINEAR else "last"
        launch = plugin_launch(tuple(int(side) for side in x.shape), norm, layout, output, TACTICS[tactic])
        params = plugin.KernelLaunchParams(*launch.grid, launch.block, shared_mem=launch.shared_bytes)
        numbers = plugin.SymIntExprs(len(launch.numbers))
        for index, number in enumerate(launch.numbers):
            numbers[index] = plugin.SymInt32(number)
        return launch.kernel, ptx_of_kernel(_ptx(architecture), launch.kernel), params, numbers

    outputs = {"outputs": tuple[plugin.TensorDesc]}
    compiled = tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]
    plugin.register(plugin_id)(_signed(describe, inputs, desc))
    plugin.autotune(plugin_id)(_signed(tune, inputs | outputs, list[plugin.AutoTuneCombination]))
    plugin.aot_impl(plugin_id)(_signed(compile_ahead, inputs | outputs | {"tactic": int}, compiled))


def _signed(function: Callable[..., Any], parameters: dict[str, Any], returns: Any) -> Callable[..., Any]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, kind, annotation=of) for name, of in parameters.items()]
    function.__signature__ = inspect.Signature(listed, return_annotation=returns)  # type: ignore[attr-defined]
    return function


def _combinations(plugin: Any, channels: int, output: str, architecture: int) -> list[Any]:
    """Return types and layouts of x, the four vectors and the output, and the tactics for each."""
    types = ", ".join(["FP16", *["FP32"] * len(VECTORS), "INT8" if output == "codes" else "FP16"])
    layouts = [("LINEAR", "LINEAR")]
    if takes_last(channels):
        layouts.append(("HWC8", "HWC16" if output == "codes" else "HWC8"))
    # A cluster does what blocks without one do, and reads once.
    ways = ("block", "cluster" if architecture >= 90 else "shared")
    tactics = [tactic for tactic, way in TACTICS.items() if way in ways]
    return [
        plugin.AutoTuneCombination(types, ", ".join([first, *["LINEAR"] * len(VECTORS), last]), tactics)
        for first, last in layouts
    ]
