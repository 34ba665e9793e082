"""Launches of the network kernels: GroupNorm+SiLU+LET+Quantize, the int8 GEMM and convolution. Nothing runs here."""

from __future__ import annotations

from typing import Any

import numpy as np

from intsr.cuda.arrays import DeviceArray
from intsr.errors import UsageError
from intsr.kernels.candidates.group_norm import NormQuantize
from intsr.kernels.candidates.int8 import Int8Product
from intsr.kernels.launches.group_norm_plugin import norm_slice
from intsr.kernels.launches.launch import Device, Launch, Plan, require
from intsr.kernels.launches.parameters import NormParams, ProductParams
from intsr.kernels.reference.group_norm import CODE_OFFSET

WAYS = ("block", "cluster", "two-pass")
_NORM_THREADS, _SUM_THREADS, _SLAB = 512, 256, 256
_STAGES, _STEP_BYTES = 3, 64


def _held_bytes(rows: int, slice_: int, groups_of_slice: int) -> int:
    """Shared memory of a block that holds `rows` pixels of a slice. Source: `Held` in group_norm.cu."""
    return rows * slice_ * 2 + _NORM_THREADS * 8 * 4 + slice_ * 4 + groups_of_slice * 2 * 4


def plan_group_norm_quantize(device: Device, x: Any, norm: NormQuantize, way: str, cluster: int = 1) -> Plan:
    """(N, H, W, C) float16 -> int8 codes, same shape.

    way: a slice is held in one block's shared memory (`block`), in a cluster's, or read twice (`two-pass`).
    """
    channels = len(norm.gamma)
    source = require(x, "x", np.float16, (None, None, None, channels))
    pictures, pixels = source.shape[0], source.shape[1] * source.shape[2]
    constants = {
        "gamma": norm.gamma,
        "beta": norm.beta,
        "shift": norm.let_shift,
        "multiplier": norm.multiplier,
    }
    uploaded: dict[str, Any] = {name: device.upload(array) for name, array in constants.items()}
    slabs = -(-channels // _SLAB)
    # Four blocks a multiprocessor, and at least eight pixels each.
    chunks = max(1, min(-(-pixels // 8), 4 * device.multiprocessors // (slabs * pictures)))
    partial = moments = None
    if way == "two-pass":
        partial = device.empty((pictures, chunks, 2, channels), np.float32)
        moments = device.empty((pictures, norm.groups, 2), np.float32)
    out = device.empty(source.shape, np.int8)
    params = NormParams(
        x=source,
        out=out,
        **uploaded,
        partial=partial,
        moments=moments,
        pixels=pixels,
        channels=channels,
        groups=norm.groups,
        slice=norm_slice(channels, norm.groups),
        chunks=chunks,
        epsilon=norm.epsilon,
        activation=int(norm.activation),
        zero_point=norm.grid.zero_point - CODE_OFFSET,
        lowest=-CODE_OFFSET,
        highest=norm.grid.qmax - CODE_OFFSET,
    )
    launches = _norm_launches(device, params, pictures, way, cluster)
    return Plan(launches, out, (source, *uploaded.values(), partial, moments))


def _norm_launches(device: Device, p: NormParams, pictures: int, way: str, blocks: int) -> tuple[Launch, ...]:
    """Raises UsageError for a way that there is not, or whose part of the picture fits no block."""
    if way == "two-pass":
        every, shared = (p.chunks, -(-p.channels // _SLAB), pictures), _SUM_THREADS // 32 * _SLAB * 2 * 4
        return (
            Launch("group_norm_sums", every, _SUM_THREADS, p, shared),
            Launch("group_norm_finish", (p.groups, pictures, 1), 32, p),
            Launch("group_norm_apply", every, _SUM_THREADS, p),
        )
    shared = _held_bytes(-(-p.pixels // blocks), p.slice, p.slice * p.groups // p.channels)
    if way not in WAYS or shared > device.shared_bytes:
        raise UsageError("way", repr(way), f"one of {', '.join(WAYS)} that fits {device.shared_bytes} bytes a block")
    grid = (blocks, p.channels // p.slice, pictures)
    return (Launch(f"group_norm_{way}", grid, _NORM_THREADS, p, shared, blocks),)


def plan_int8_gemm(device: Device, codes: Any, residual: Any | None, product: Int8Product, tile: int = 64) -> Plan:
    """(M, K) int8, residual (M, N) float16 -> (M, N) float16. tile: 64 or 128, sides of a block's part."""
    _, kernel_height, kernel_width, channels_in = product.weights.shape
    if (kernel_height, kernel_width) != (1, 1):
        raise UsageError("int8 GEMM", f"a {kernel_height}x{kernel_width} kernel", "1x1")
    source = require(codes, "codes", np.int8, (None, channels_in))
    rows = source.shape[0]
    out = device.empty((rows, len(product.scale)), np.float16)
    return _plan_product(device, "gemm", source, (1, rows, 1), (rows, 1), product, residual, out, tile)


def plan_int8_conv(device: Device, codes: Any, residual: Any | None, product: Int8Product, tile: int = 64) -> Plan:
    """(N, H, W, Cin) int8, residual like the result -> (N, H', W', Cout) float16. tile: as in `plan_int8_gemm`."""
    source = require(codes, "codes", np.int8, (None, None, None, product.weights.shape[3]))
    pictures, height, width, _ = source.shape
    size = product.out_size(height, width)
    out = device.empty((pictures, *size, len(product.scale)), np.float16)
    return _plan_product(device, "conv", source, (pictures, height, width), size, product, residual, out, tile)


def _plan_product(
    device: Device,
    kind: str,
    source: DeviceArray,
    picture: tuple[int, int, int],
    size: tuple[int, int],
    product: Int8Product,
    residual: Any | None,
    out: DeviceArray,
    tile: int,
) -> Plan:
    channels_out, kernel_height, kernel_width, channels_in = product.weights.shape
    added = None if residual is None else require(residual, "residual", np.float16, out.shape)
    constants = [device.upload(array) for array in (product.weights, product.pad, product.scale, product.bias)]
    pixels = picture[0] * size[0] * size[1]
    params = ProductParams(
        codes=source,
        **dict(zip(("weights", "pad", "scale", "bias"), constants, strict=True)),
        residual=added,
        out=out,
        pixels=pixels,
        height=picture[1],
        width=picture[2],
        channels_in=channels_in,
        channels_out=channels_out,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        stride=product.stride,
        pad_top=product.padding[0],
        pad_left=product.padding[1],
        out_height=size[0],
        out_width=size[1],
    )
    grid = (-(-pixels // tile), -(-channels_out // tile), 1)
    shared = _STAGES * 2 * tile * _STEP_BYTES
    launch = Launch(f"int8_{kind}_{tile}", grid, 256 if tile == 128 else 128, params, shared)
    return Plan((launch,), out, (source, added, *constants))
