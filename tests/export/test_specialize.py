from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from folding import Modules

from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.errors import ExportError
from intsr.export.fold.specialize import specialize


@pytest.mark.parametrize("name", ["tiny_model", "demo_model"])
def test_specialized_equals_the_model_it_came_from(name: str, request: pytest.FixtureRequest) -> None:
    model: SRModel = request.getfixturevalue(name)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        for network, reference in reference_networks(model).items():
            expected, got = reference(x), specialize(network, model).module(x)
            unit = expected.std()
            assert ((expected - got) / unit).abs().max() < 1e-4, network
            x = expected / unit


def test_the_original_model_is_untouched(tiny_folder: str) -> None:
    model = load_model(str(tiny_folder))
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    specialize("unet", model)
    after = model.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_time_and_context_are_gone(tiny_specialized: Modules) -> None:
    names = set(tiny_specialized["unet"].state_dict())
    assert not [name for name in names if "time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name]
    assert [name for name in names if name.endswith("attn2.key")]


def test_a_change_of_timestep_changes_the_result(tiny_model: SRModel, tiny_specialized: Modules) -> None:
    # Were the time embedding lost instead of folded, this would be equal.
    other = specialize("unet", replace(tiny_model, spec=replace(tiny_model.spec, timestep=3))).module
    latent = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(tiny_specialized["unet"](latent), other(latent), atol=1e-3)


def test_another_kind_of_unet_is_refused(tiny_folder: str) -> None:
    model = load_model(str(tiny_folder))
    model.unet.register_to_config(class_embed_type="timestep")
    with pytest.raises(ExportError, match="class_embed_type"):
        specialize("unet", model)
