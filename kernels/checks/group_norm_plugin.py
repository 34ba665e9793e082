"""Checks of the TensorRT plugin's kernels: both layouts, both outputs, one block or a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intsr.arrays import Array
from intsr.kernels.checks import NEXT_CODE, Check, Random, Tolerance
from intsr.kernels.launches.group_norm_plugin import WAYS, PluginNorm, plan_group_norm_plugin
from intsr.kernels.launches.launch import Device, Plan
from intsr.kernels.reference.group_norm import group_norm_plugin

# A value at a tie of fp16 takes the next one: 2**-8 for values of 8 to 16, the largest here.
NEXT_HALF = Tolerance(2**-7, 0.02)


def plugin_check(
    rng: Random,
    shape: tuple[int, int, int, int],
    norm: PluginNorm,
    layout: str,
    output: str,
    way: str = "block",
    outlier: bool = False,
) -> Check:
    """shape: (N, C, H, W). outlier: the very first number is far from all others."""
    channels, codes = shape[1], output == "codes"
    gamma, beta, shift = (rng.normal(0, 0.2, channels).astype(np.float32) for _ in range(3))
    step = 1 / 64 if codes else 1.0
    multiplier = (np.exp(rng.normal(0, 0.2, channels)) / step).astype(np.float32)
    vectors = {"gamma": 1 + gamma, "beta": beta, "shift": shift, "multiplier": multiplier}
    x = rng.normal(3, 2, shape).astype(np.float16)
    if outlier:
        x[:, 0, 0, 0] = 3000

    def to_layout(array: Array) -> Array:
        return array if layout == "linear" else array.transpose(0, 2, 3, 1)

    def plan(device: Device) -> Plan:
        source = device.upload(to_layout(x))
        return plan_group_norm_plugin(device, source, vectors, norm, layout, output, way)

    def expected() -> Array:
        ends = (norm.lowest, norm.highest) if codes else None
        four = (1 + gamma, beta, shift, multiplier)
        exact = group_norm_plugin(x, four, norm.groups, norm.epsilon, norm.activation, ends)
        return to_layout(exact if codes else exact.astype(np.float16))

    name = f"plugin {layout} {output}{'' if way == 'block' else f' {way}'}"
    tolerance = NEXT_CODE if codes else NEXT_HALF
    text = f"{'x'.join(map(str, shape))} in {norm.groups} groups"
    return Check(name, text, plan, expected, tolerance, x.size * (3 if codes else 4))


def small_plugin_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    for layout in ("linear", "last"):
        yield plugin_check(rng, (2, 32, 4, 6), PluginNorm(4, 1e-5, True), layout, "codes")
        yield plugin_check(rng, (1, 320, 2, 8), PluginNorm(32, 1e-6, False), layout, "halves")
        yield plugin_check(rng, (1, 32, 8, 8), PluginNorm(8, 1e-5, True, -13, 50), layout, "codes", outlier=True)
        # More than shared memory holds: part of it is read a second time.
        yield plugin_check(rng, (1, 16, 64, 40), PluginNorm(2, 1e-5, True), layout, "codes")
        # A channel of more vectors than a block has threads: a step stays inside it, or does not.
        yield plugin_check(rng, (1, 16, 72, 64), PluginNorm(2, 1e-5, True), layout, "halves")
        for way in ("cluster", "shared") if clusters else ("shared",):
            yield plugin_check(rng, (1, 64, 8, 5), PluginNorm(32, 1e-5, False), layout, "codes", way)
            # Blocks without anything to do.
            yield plugin_check(rng, (2, 16, 2, 4), PluginNorm(2, 1e-5, True), layout, "halves", way)
        yield plugin_check(rng, (1, 16, 72, 64), PluginNorm(2, 1e-5, True), layout, "codes", "shared")


def full_plugin_checks(rng: Random, clusters: bool) -> Iterator[Check]:
    for side, channels in ((64, 320), (16, 1280), (512, 128)):
        for layout in ("linear", "last"):
            for way in WAYS if clusters else ("block", "shared"):
                norm = PluginNorm(32, 1e-6, True)
                yield plugin_check(rng, (1, channels, side, side), norm, layout, "codes", way)
