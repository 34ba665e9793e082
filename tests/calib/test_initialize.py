"""Where training starts, on whatever device the layers are."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from intsr.calib.learn.blocks import layer_statistics
from intsr.calib.learn.initialize import initialize
from intsr.calib.learn.method import PICTURE
from intsr.calib.learn.quantized_layer import QuantizedLayer, quantized_layers
from intsr.calib.methods import method_from_name, methods
from intsr.calib.models.open import SRModel
from intsr.calib.models.reference import reference_networks
from intsr.types import Bits


def start_of(model: SRModel, method: str, elsewhere: bool) -> dict[str, QuantizedLayer]:
    """elsewhere: tensors that name no device land on another than the layers', as where those are on a GPU."""
    plan, network = method_from_name(method), reference_networks(model)["unet"]
    layers = quantized_layers(model, Bits(6, 6), ("unet",), let=plan.let, symmetric=plan.symmetric)
    layers = {site: layer for site, layer in layers.items() if "up_blocks.1.resnets" in site}
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = layer_statistics(network, {site: network.get_submodule(site) for site in layers}, [latent])
    with torch.device("meta") if elsewhere else nullcontext():
        initialize(list(layers.values()), seen, plan.start, 0)
    return layers


@pytest.mark.parametrize("method", [name for name, method in methods(PICTURE).items() if method.trains])
@torch.no_grad()
def test_every_tensor_is_made_where_the_layers_are(tiny_model: SRModel, method: str) -> None:
    here, elsewhere = (start_of(tiny_model, method, flag) for flag in (False, True))
    for site, layer in here.items():
        expected = layer.state_dict()
        for name, value in elsewhere[site].state_dict().items():
            assert torch.equal(value, expected[name]), (site, name)
    # Not the values that layers are made with.
    assert any(float(layer.grid.base_high) != 1 for layer in here.values())
