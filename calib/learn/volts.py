"""VOLTS, LSGQuant's way to spend training where it tells: layers in tiers, by how much their inputs vary.

    sensitivity = mean over channels of  var over clips of  mean over tokens of x_c

of a layer's input x in full precision; the variance is unbiased. The paper says no more than variance of the mean;
its published thresholds, 0.001 and 0.075, put nearly every layer of another model into one tier, so that tiers are
those of quantiles of the model's own distribution. docs/theory.md, "LSGQuant".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from intsr.calib.calibration.types import Sensitivity
from intsr.calib.observe.hooks import observed

# Frozen: as initialized; lightly: some steps; convergence: as long as held-out clips gain.
FROZEN, LIGHT, CONVERGENCE = "frozen", "light", "convergence"
# Shares of the layers that are in the first tier, and in the first two.
FROZEN_SHARE, LIGHT_SHARE = 0.1, 0.4


class _ClipMeans:
    """A forward pre-hook: the mean of each channel over the tokens of each clip."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.means += inputs[0].float().mean(-2).unbind(0)


@torch.no_grad()
def input_variances(
    network: nn.Module, layers: Mapping[str, nn.Module], clips: Iterable[torch.Tensor]
) -> dict[str, float]:
    """The sensitivity of every layer. layers: of `network`, linear, (N, tokens, C) -> ...; clips: two at least."""
    observers = {site: _ClipMeans() for site in layers}
    with observed(layers, observers):
        for clip in clips:
            network(clip)
    return {site: float(torch.stack(observer.means).var(0).mean()) for site, observer in observers.items()}


def tiers_from_variances(variances: Mapping[str, float]) -> dict[str, Sensitivity]:
    """Every layer's tier: up to the quantile FROZEN_SHARE of all variances, up to LIGHT_SHARE, and above."""
    values = torch.tensor(list(variances.values()), dtype=torch.float64)
    first, second = (float(values.quantile(share)) for share in (FROZEN_SHARE, LIGHT_SHARE))
    return {
        site: Sensitivity(value, FROZEN if value <= first else LIGHT if value <= second else CONVERGENCE)
        for site, value in variances.items()
    }
