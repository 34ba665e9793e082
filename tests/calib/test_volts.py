"""VOLTS: sensitivities against NumPy's variance, tiers against quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from intsr.calib.learn.volts import CONVERGENCE, FROZEN, LIGHT, input_variances, tiers_from_variances


def test_sensitivity_is_the_variance_of_the_inputs_mean_over_clips() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    clips = [torch.randn(2, 5, 6) + shift for shift in (0.0, 1.0)]
    got = input_variances(network, {"a": network[0], "b": network[2]}, clips)
    for name, inputs in (("a", clips), ("b", [network[:2](clip) for clip in clips])):
        means = torch.cat(inputs).detach().numpy().mean(1)
        assert got[name] == pytest.approx(np.var(means, axis=0, ddof=1).mean(), rel=1e-5)
    assert not network[0]._forward_pre_hooks


def test_tiers_are_quantiles_of_the_models_own_sensitivities() -> None:
    values = {f"layer.{i}": 10.0**i for i in (3, 0, 2, 1, 5, 4, 7, 6)}
    tiers = {site: sensitivity.tier for site, sensitivity in tiers_from_variances(values).items()}
    by_value = [tiers[f"layer.{i}"] for i in range(8)]
    assert by_value == [FROZEN] + [LIGHT] * 2 + [CONVERGENCE] * 5
    # Another scale is another model's, and changes nothing.
    scaled = tiers_from_variances({site: 1e-6 * value for site, value in values.items()})
    assert {site: sensitivity.tier for site, sensitivity in scaled.items()} == tiers
