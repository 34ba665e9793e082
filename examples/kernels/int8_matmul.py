"""A kernel of one's own beside IntSR's: int8 GEMM and convolution, with scale, bias and residual behind them.

    python examples/kernels/int8_matmul.py --emulate    # the CUDA source on the CPU, in small sizes
    python examples/kernels/int8_matmul.py              # on the GPU; nvcc compiles it first

    out = half(float(sum of codes * weights) * scale + bias + residual),   each step rounded to float32

With the activation's grid (scale D_a; codes stored minus 128, zero-point z) and the weights' scale D_w a channel:

    D_a D_w sum((q - z) w) + b  =  (D_a D_w) sum(q w) + (b - D_a D_w z sum(w))

so that zero-points, of any size, live in the bias. Padding is by code: a padded pixel holds the code of 0, which LET
makes (0 - d) / s, another one in each channel. See docs/theory.md, "Borders". No engine uses it: for that, it would
have to be faster than TensorRT's own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from intsr.arrays import Array
from intsr.kernels.build import build_source, find_nvcc
from intsr.kernels.launches.launch import Device, Launch, Plan
from intsr.kernels.launches.parameters import KERNELS, Params, fields_of
from intsr.kernels.selfcheck import open_device

SOURCE = str(Path(__file__).resolve().with_suffix(""))
# Sides of a block's part of the output, and its threads.
THREADS = {64: 128, 128: 256}
_STAGES, _STEP_BYTES = 3, 64


class ProductParams(Params):
    _fields_: ClassVar = fields_of(
        pointers="codes weights pad scale bias residual out",
        ints="pixels height width channels_in channels_out kernel_height kernel_width stride pad_top pad_left "
        "out_height out_width",
    )


# Devices find a kernel's source and parameters here.
KERNELS.update({f"int8_{kind}_{tile}": (SOURCE, ProductParams) for kind in ("gemm", "conv") for tile in THREADS})


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution and its input: Cin a multiple of 16, Cout of 8. A linear layer is one of 1x1 on M x 1 pixels."""

    codes: Array  # int8 (N, H, W, Cin)
    weights: Array  # int8 (Cout, kh, kw, Cin)
    pad: Array  # int8 (Cin,): the codes of a padded pixel
    scale: Array  # float32 (Cout,), and so is bias
    bias: Array
    residual: Array  # float16 (N, H', W', Cout)
    stride: int
    padding: tuple[int, int, int, int]  # at the top, left, bottom and right


def random_product(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    channels_out: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Product:
    pictures, height, width, channels_in = shape
    top, left, bottom, right = padding
    size = (pictures, (height + top + bottom - kernel) // stride + 1, (width + left + right - kernel) // stride + 1)
    return Product(
        rng.integers(-128, 128, shape, dtype=np.int8),
        rng.integers(-127, 128, (channels_out, kernel, kernel, channels_in), dtype=np.int8),
        rng.integers(-128, 128, channels_in, dtype=np.int8),
        rng.uniform(1e-5, 3e-5, channels_out).astype(np.float32),
        rng.normal(0, 1, channels_out).astype(np.float32),
        rng.normal(0, 1, (*size, channels_out)).astype(np.float16),
        stride,
        padding,
    )


def reference(p: Product) -> Array:
    """(N, H', W', Cout) float16."""
    pictures, height, width, channels = p.codes.shape
    top, left, bottom, right = p.padding
    padded = np.empty((pictures, height + top + bottom, width + left + right, channels), np.float64)
    padded[:] = p.pad
    padded[:, top : top + height, left : left + width] = p.codes
    _, down, across, _ = p.residual.shape
    # Whole numbers below 2**53: exact in float64, and quick.
    sums = np.zeros(p.residual.shape)
    for y, x in np.ndindex(p.weights.shape[1:3]):
        window = padded[:, y : y + down * p.stride : p.stride, x : x + across * p.stride : p.stride]
        sums += window[:, :down, :across] @ p.weights[:, y, x].astype(np.float64).T
    return (sums.astype(np.float32) * p.scale + p.bias + p.residual.astype(np.float32)).astype(np.float16)


def plan(device: Device, p: Product, tile: int) -> Plan:
    """tile: 64 or 128, sides of a block's part of the output."""
    pictures, height, width, channels_in = p.codes.shape
    channels_out, kernel_height, kernel_width, _ = p.weights.shape
    _, out_height, out_width, _ = p.residual.shape
    names = ("codes", "weights", "pad", "scale", "bias", "residual")
    arrays = {name: device.upload(getattr(p, name)) for name in names}
    out = device.empty(p.residual.shape, np.float16)
    pixels = pictures * out_height * out_width
    params = ProductParams(
        **arrays,
        out=out,
        pixels=pixels,
        height=height,
        width=width,
        channels_in=channels_in,
        channels_out=channels_out,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        stride=p.stride,
        pad_top=p.padding[0],
        pad_left=p.padding[1],
        out_height=out_height,
        out_width=out_width,
    )
    kind = "gemm" if (kernel_height, kernel_width, p.stride, p.padding) == (1, 1, 1, (0, 0, 0, 0)) else "conv"
    grid = (-(-pixels // tile), -(-channels_out // tile), 1)
    launch = Launch(f"int8_{kind}_{tile}", grid, THREADS[tile], params, _STAGES * 2 * tile * _STEP_BYTES)
    return Plan((launch,), out, tuple(arrays.values()))


def products(rng: np.random.Generator, full: bool) -> list[Product]:
    """Awkward sizes, which fill no tile; and, where `full`, those of the full model at a 64x64 latent."""
    same, below_and_right = (1, 1, 1, 1), (0, 0, 1, 1)
    made = [
        random_product(rng, (1, 100, 1, 80), 72),
        random_product(rng, (1, 7, 1, 272), 136),
        random_product(rng, (2, 9, 7, 80), 72, kernel=3, padding=same),
        random_product(rng, (1, 8, 11, 64), 40, kernel=3, stride=2, padding=below_and_right),
    ]
    if full:
        for rows, inner, columns in ((4096, 320, 2560), (4096, 1280, 320), (1024, 640, 5120), (8192, 8192, 8192)):
            made.append(random_product(rng, (1, rows, 1, inner), columns))
        for side, inner, columns in ((64, 320, 320), (32, 1280, 640), (8, 2560, 1280), (256, 256, 256)):
            made.append(random_product(rng, (1, side, side, inner), columns, kernel=3, padding=same))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Check int8 products against NumPy, and time them on a GPU.")
    parser.add_argument("--emulate", action="store_true", help="run the source on the CPU, small sizes")
    emulate = parser.parse_args().emulate
    device = open_device(emulate)
    if not emulate:
        build_source(find_nvcc(), SOURCE)
    failed = 0
    for product in products(np.random.default_rng(0), full=not emulate):
        expected = reference(product)
        for tile in THREADS:
            launches = plan(device, product, tile)
            agrees = np.array_equal(device.download(device.run(launches)), expected)
            failed += not agrees
            name = f"{launches.launches[0].kernel} {product.codes.shape} to {expected.shape}"
            line = f"{'ok  ' if agrees else 'FAIL'} {name}"
            if not emulate:
                time_ms = device.milliseconds(launches, 20)
                operations = 2 * expected.size * product.weights[0].size
                line += f" {time_ms:.4f} ms, {operations / time_ms / 1e9:.1f} TOPS"
            print(line, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
