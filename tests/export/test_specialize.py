from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from folding import Modules

from intsr.calib.models.open import SRModel, load_model
from intsr.calib.models.reference import reference_networks
from intsr.errors import ExportError
from intsr.export.fold.specialize import specialize
from intsr.types import NETWORKS


def modules_of(model: SRModel) -> Modules:
    return {name: specialize(name, model).module for name in NETWORKS}


def assert_equal_networks(model: SRModel, specialized: Modules, side: int) -> None:
    reference = reference_networks(model)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        for name in NETWORKS:
            expected, got = reference[name](x), specialized[name](x)
            unit = expected.std()
            assert ((expected - got) / unit).abs().max() < 1e-4, name
            x = expected / unit if name != "decoder" else expected


def test_specialized_equals_the_model_it_came_from(tiny_model: SRModel, tiny_specialized: Modules) -> None:
    assert_equal_networks(tiny_model, tiny_specialized, 64)


def test_demo_model(demo_model: SRModel) -> None:
    assert_equal_networks(demo_model, modules_of(demo_model), 64)


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
