"""Checks of the TensorRT plugin's kernels: both layouts, both outputs, one block or a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from intsr.arrays import Array
from intsr.kernels.checks.check import NEXT_CODE, Check, Random, Tolerance
from intsr.kernels.launches.group_norm_plugin import WAYS, PluginNorm, plan_group_norm_plugin
from intsr.kernels.reference.group_norm import group_norm_plugin

# A value at a tie of fp16 takes the next one: 2**-8 for values of 8 to 16, the largest here.
NEXT_HALF = Tolerance(2**-7, 0.02)


def plugin_check(
    rng: Random,
    shape: tuple[int, int, int, int],
    norm: PluginNorm,
    layout: str,
    output: str,
    *,
    way: str = "block",
    outlier: bool = False,
) -> Check:
    """shape: (N, C, H, W). outlier: the very first number is far from all others."""
    channels, codes = shape[1], output == "codes"
    gamma, beta, shift = (rng.normal(0, 0.2, channels).astype(np.float32) for _ in range(3))
    step = 1 / 64 if codes else 1.0
    multiplier = (np.exp(rng.normal(0, 0.2, channels)) / step).astype(np.float32)
    x = rng.normal(3, 2, shape).astype(np.float16)
    if outlier:
        x[:, 0, 0, 0] = 3000
    to_layout, from_layout = ((0, 1, 2, 3),) * 2 if layout == "linear" else ((0, 2, 3, 1), (0, 3, 1, 2))

    def reference(x: Array, gamma: Array, beta: Array, shift: Array, multiplier: Array) -> Array:
        y = group_norm_plugin(x.transpose(from_layout), (gamma, beta, shift, multiplier), norm, codes)
        return y.astype(np.int8 if codes else np.float16).transpose(to_layout)

    return Check(
        f"plugin {layout} {output}{'' if way == 'block' else f' {way}'}",
        f"{'x'.join(map(str, shape))} in {norm.groups} groups",
        (x.transpose(to_layout), 1 + gamma, beta, shift, multiplier),
        partial(plan_group_norm_plugin, norm=norm, layout=layout, output=output, way=way),
        reference,
        NEXT_CODE if codes else NEXT_HALF,
    )


def small_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    for layout in ("linear", "last"):
        yield plugin_check(rng, (2, 32, 4, 6), PluginNorm(4, 1e-5, True), layout, "codes")
        yield plugin_check(rng, (1, 320, 2, 8), PluginNorm(32, 1e-6, False), layout, "halves")
        yield plugin_check(rng, (1, 32, 8, 8), PluginNorm(8, 1e-5, True, -13, 50), layout, "codes", outlier=True)
        # More than shared memory holds: part of it is read a second time.
        yield plugin_check(rng, (1, 16, 64, 40), PluginNorm(2, 1e-5, True), layout, "codes")
        # A channel of more vectors than a block has threads: a step stays inside it, or does not.
        yield plugin_check(rng, (1, 16, 72, 64), PluginNorm(2, 1e-5, True), layout, "halves")
        for way in ("cluster", "shared") if clusters else ("shared",):
            yield plugin_check(rng, (1, 16, 8, 5), PluginNorm(8, 1e-5, False), layout, "codes", way=way)
            # Blocks without anything to do.
            yield plugin_check(rng, (2, 16, 2, 4), PluginNorm(2, 1e-5, True), layout, "halves", way=way)
        yield plugin_check(rng, (1, 16, 72, 64), PluginNorm(2, 1e-5, True), layout, "codes", way="shared")


def full_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    for side, channels in ((64, 320), (16, 1280), (512, 128)):
        for layout in ("linear", "last"):
            for way in WAYS if clusters else ("block", "shared"):
                norm = PluginNorm(32, 1e-6, True)
                yield plugin_check(rng, (1, channels, side, side), norm, layout, "codes", way=way)
