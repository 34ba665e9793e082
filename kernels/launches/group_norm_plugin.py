"""GroupNorm, SiLU, LET and Quantize in the one launch that a TensorRT plugin has: group_norm_plugin.cu."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from intsr.cuda.arrays import DeviceArray
from intsr.errors import UsageError
from intsr.kernels.launches.launch import Device, Launch, Plan, require
from intsr.kernels.launches.parameters import PluginParams

# The operators in ONNX and in TensorRT: namespace, version, and what each one's kernel writes.
NAMESPACE, VERSION = "intsr", "1"
OPERATORS = {"group_norm_silu_quantize": "codes", "group_norm_silu": "halves"}
VECTORS = ("gamma", "beta", "shift", "multiplier")
LAYOUTS, OUTPUTS = ("linear", "last"), ("codes", "halves")
SOURCE = "group_norm_plugin"
CLUSTER_BLOCKS = 8
# Blocks of a grid that share a piece: each reads all of it for the moments, out of the cache but for the first.
SHARES = 4
# Ways to run one norm: a block a piece, a cluster (compute capability 9.0 and up), or several blocks without one.
WAYS = ("block", "cluster", "shared")
# More needs a permission that nobody documents TensorRT to ask for.
SHARED_BYTES = 48 * 1024
# Engines store a code of [0, 2**bits - 1] as int8: code - 128, whatever the bits.
CODE_OFFSET = 128
_THREADS = 512
# What the kernel takes between its inputs and its output, in that order.
NUMBERS = ("pixels", "channels", "groups", "slice", "held", "epsilon_bits", "activation", "lowest", "highest")


@dataclass(frozen=True, slots=True)
class PluginNorm:
    """The operation but for its vectors."""

    groups: int
    epsilon: float
    # Whether SiLU follows the norm.
    activation: bool
    # The range of the signed codes, of no meaning where the output is fp16.
    lowest: int = -128
    highest: int = 127

    def __post_init__(self) -> None:
        if self.groups < 1 or not 0 < self.epsilon < np.inf:
            raise UsageError("GroupNorm", f"{self.groups} groups, epsilon {self.epsilon}", "positive numbers")
        if not -CODE_OFFSET <= self.lowest < self.highest < CODE_OFFSET:
            raise UsageError("grid", f"codes {self.lowest} to {self.highest}", "within int8")


@dataclass(frozen=True, slots=True)
class PluginLaunch:
    """One launch, as `Launch`, but without addresses."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    cluster: int
    # In the order of NUMBERS, none negative.
    numbers: tuple[int, ...]


def norm_slice(channels: int, groups: int) -> int:
    """Return the fewest channels that are whole groups and whole 16-byte vectors of fp16."""
    return math.lcm(channels // groups, 8)


def takes_shape(shape: tuple[int, ...], groups: int) -> bool:
    """Tell whether the kernels take an (N, C, H, W) in layout `linear`: whole vectors in whole channels."""
    if len(shape) != 4 or min(shape) < 1 or shape[1] % groups or shape[1] % 8:
        return False
    return shape[2] * shape[3] % 8 == 0


def takes_last(channels: int) -> bool:
    """Tell whether layout `last` is dense: TensorRT's HWC16 pads channels to a multiple of 16."""
    return channels % 16 == 0


def plugin_launch(
    shape: tuple[int, ...], norm: PluginNorm, layout: str, output: str, way: str = "block"
) -> PluginLaunch:
    """Return the launch for (N, C, H, W), whatever the layout. Raises UsageError where no kernel takes it."""
    if layout not in LAYOUTS or output not in OUTPUTS or way not in WAYS:
        raise UsageError(
            "plugin", f"{layout!r}, {output!r}, {way!r}", f"one of {LAYOUTS}, of {OUTPUTS} and of {WAYS}"
        )
    last = layout == "last"
    if not takes_shape(shape, norm.groups) or (last and not takes_last(shape[1])):
        expected = f"(N, C, H, W), C % {16 if last else 8} and H W % 8 and C % {norm.groups} groups 0"
        raise UsageError("plugin", f"shape {shape}", expected)
    pictures, channels, height, width = shape
    pixels, slice_ = height * width, norm_slice(channels, norm.groups)
    group_size = channels // norm.groups
    of_slice = slice_ if last else group_size
    blocks = {"block": 1, "cluster": CLUSTER_BLOCKS, "shared": SHARES}[way]
    rows = -(-(pixels if last else pixels // 8 * group_size) // blocks)
    # Source: `Shared` in group_norm_plugin.cu.
    fixed = _THREADS * 8 * 4 + of_slice * 4 + (slice_ // group_size) * 2 * 4
    held = min(rows * (slice_ // 8 if last else 1), (SHARED_BYTES - fixed) // 16)
    if held < 0 or slice_ > _THREADS * 8:
        raise UsageError("plugin", f"{group_size} channels a group", "fewer")
    epsilon_bits = struct.unpack("<i", struct.pack("<f", norm.epsilon))[0]
    grid_codes = (norm.lowest + CODE_OFFSET, norm.highest + CODE_OFFSET)
    return PluginLaunch(
        f"plugin_{layout}_{output}{'_cluster' if way == 'cluster' else ''}",
        (blocks, channels // slice_ if last else norm.groups, pictures),
        _THREADS,
        held * 16 + fixed,
        blocks if way == "cluster" else 1,
        (pixels, channels, norm.groups, slice_, held, epsilon_bits, int(norm.activation), *grid_codes),
    )


def plan_group_norm_plugin(
    device: Device, x: Any, *vectors: DeviceArray, norm: PluginNorm, layout: str, output: str, way: str
) -> Plan:
    """x: float16, (N, C, H, W) where `linear`, else (N, H, W, C) -> int8 or float16 of the same shape.

    vectors: gamma, beta, shift, multiplier, (C,) float32.
    """
    source = require(x, "x", np.float16, (None, None, None, None))
    a, b, c, d = source.shape
    launch = plugin_launch((a, b, c, d) if layout == "linear" else (a, d, b, c), norm, layout, output, way)
    constants = dict(zip(VECTORS, vectors, strict=True))
    out = device.empty(source.shape, np.int8 if output == "codes" else np.float16)
    params = PluginParams(x=source, out=out, **constants, **dict(zip(NUMBERS, launch.numbers, strict=True)))
    made = Launch(launch.kernel, launch.grid, launch.block, params, launch.shared_bytes, launch.cluster)
    return Plan((made,), out, (source, *vectors))
