"""Each family's file, made by PEFT as its authors make it, against the authors' forward rule in plain diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch

from intsr.calib.models.convert import convert
from intsr.calib.models.families.published import FAMILIES, read_lora
from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.errors import ModelError, UsageError
from intsr.export.fold.specialize import specialize
from intsr.types import NETWORKS

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def published(base: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """The family's file, and its networks with PEFT's layers."""
    place, made = tmp_path_factory.mktemp("published"), dict[str, SimpleNamespace]()

    def publish(family: str) -> SimpleNamespace:
        if family not in made:
            path = place / FAMILIES[family].published
            unet, vae = families.publish(family, base.unet, base.vae, path)
            made[family] = SimpleNamespace(path=path, unet=unet, vae=vae)
        return made[family]

    return publish


@torch.no_grad()
def picture_of(model: SRModel, x: torch.Tensor) -> torch.Tensor:
    """Through the three networks that are exported."""
    for name in NETWORKS:
        x = specialize(name, model).module(x)
    return x


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-4 of a picture's range, or of what random weights make instead of one."""
    assert float((got - expected).abs().max()) < TOLERANCE * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("family", families.NAMES)
def test_pictures_are_those_of_the_published_rule(
    base: SimpleNamespace, published: Callable[[str], SimpleNamespace], family: str
) -> None:
    theirs = published(family)
    model = load_model(str(base.folder), base.context, theirs.path)
    with torch.no_grad():
        expected = families.forward(family, theirs.unet, theirs.vae, model.context)(picture())
        plain = families.forward(family, base.unet, base.vae, model.context)(picture())
    assert_close(picture_of(model, picture()), expected)
    # The LoRA is not nothing, so that a lost one would show.
    assert float((plain - expected).abs().max()) > 100 * TOLERANCE * float(expected.abs().max())
    assert model.spec.defaults.family == family and FAMILIES[family].licence in model.spec.licence


@pytest.mark.parametrize(("weights", "adapters"), [((1.0, 1.0), "both"), ((1.3, 0.0), "pix"), ((0.7, 0.7), "both")])
def test_pisa_weights_that_are_one_network(
    base: SimpleNamespace,
    published: Callable[[str], SimpleNamespace],
    weights: tuple[float, float],
    adapters: str,
) -> None:
    theirs = published("pisasr")
    model = load_model(str(base.folder), base.context, theirs.path, pisa_weights=weights)
    unet = copy.deepcopy(theirs.unet)
    unet.set_adapter([f"default_{division}_pix" for division in ("encoder", "decoder", "others")])
    with torch.no_grad():
        z = theirs.vae.encode(picture()).latent_dist.mode() * 0.18215
        pix, both = (network(z, 1, encoder_hidden_states=model.context).sample for network in (unet, theirs.unet))
        expected = theirs.vae.decode((z - weights[0] * pix - weights[1] * (both - pix)) / 0.18215).sample
    assert_close(picture_of(model, picture()), expected)
    assert (adapters == "both") == (len(model_updates(theirs.path, weights)["conv_in"]) == 2)


def model_updates(path: Path, weights: tuple[float, float]) -> Any:
    return read_lora(path, weights).updates["unet"]


def test_pisa_weights_are_part_of_name_and_digest(
    base: SimpleNamespace, published: Callable[[str], SimpleNamespace]
) -> None:
    path = published("pisasr").path
    usual, same, other = (
        open_model(str(base.folder), base.context, path, pisa_weights=weights)
        for weights in (None, (1.0, 1.0), (1.2, 0.0))
    )
    assert usual.digest == same.digest != other.digest
    assert other.spec.name.endswith("+pisa_sr(1.2,0)")


@pytest.mark.parametrize(
    "weights", [(1.0, 0.5), (0.0, 1.0), (-1.0, -1.0), (0.0, 0.0), (float("nan"), 0.0), (float("inf"), 0.0)]
)
def test_pisa_weights_that_take_two_networks(
    published: Callable[[str], SimpleNamespace], weights: tuple[float, float]
) -> None:
    with pytest.raises(UsageError, match=r"--pisa-weights: .*two networks") as error:
        read_lora(published("pisasr").path, weights)
    assert "\n" not in str(error.value)


def test_a_folder_of_adapters_that_is_here_has_its_name(
    base: SimpleNamespace, published: Callable[[str], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published("omgsr").path)
    assert open_model(str(base.folder), base.context, Path()).spec.name.endswith("+omgsr-s-512")


@pytest.mark.parametrize("settings", [{"lora_alpha": 7}, {"use_rslora": True}, {"patterns": True}, {"regex": True}])
def test_peft_settings_are_honoured(base: SimpleNamespace, tmp_path: Path, settings: dict[str, Any]) -> None:
    if "patterns" in settings:
        settings = {"rank_pattern": {"conv1": 2, r"mid_block\..*to_q": 5}, "alpha_pattern": {"conv2": 1, "to_v": 9}}
    if "regex" in settings:
        settings = {"target_modules": r".*(conv1|to_q)|conv_in"}
    path = tmp_path / "adapters"
    unet, vae = families.omgsr_with(copy.deepcopy(base.unet), copy.deepcopy(base.vae), path, **settings)
    model = load_model(str(base.folder), base.context, path)
    for got, adapted in ((model.unet, unet), (model.vae.encoder, vae.encoder)):
        merged = copy.deepcopy(adapted).merge_and_unload()
        torch.testing.assert_close(dict(got.state_dict()), dict(merged.state_dict()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["osediff", "hypir", "pisasr"])
def test_converted_it_is_the_same(published: Callable[[str], SimpleNamespace], tmp_path: Path, family: str) -> None:
    path = published(family).path
    written = convert(path, tmp_path / "converted.safetensors")
    assert written.kind == f"{FAMILIES[family].title} LoRA"
    got, expected = read_lora(written.output), read_lora(path)
    assert got.family is expected.family is FAMILIES[family]
    torch.testing.assert_close((got.updates, got.base), (expected.updates, expected.base), rtol=0, atol=0)


def test_a_model_is_of_one_family_alone(
    base: SimpleNamespace, published: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(base.folder, tmp_path / "merged"))
    settings = {"schema_version": 1, "name": "merged", "timestep": 999, "upscale_factor": 4, "family": "osediff"}
    settings |= {"resize_filter": "lanczos", "context": "context.safetensors", "licence": "none"}
    (folder / "intsr_model.json").write_text(json.dumps(settings))
    assert open_model(str(folder)).spec.defaults == FAMILIES["osediff"].defaults
    with pytest.raises(ModelError, match="HYPIR's LoRA for a model that is OSEDiff's already"):
        open_model(str(folder), lora=published("hypir").path)
    (folder / "intsr_model.json").write_text(json.dumps(settings | {"family": "unheard-of"}))
    with pytest.raises(ModelError, match="family 'unheard-of'; expected one of osediff, hypir"):
        open_model(str(folder))


def test_the_base_for_768_pixels_is_told(
    base: SimpleNamespace, published: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    import shutil

    from models import edit_json

    folder = Path(shutil.copytree(base.folder, tmp_path / "v"))
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert open_model(str(folder), base.context).spec.x0_rule == "v"
    with pytest.raises(ModelError, match=r"'v_prediction', as SD 2\.1 for 768 pixels has; expected epsilon: HYPIR"):
        open_model(str(folder), base.context, published("hypir").path)


def test_a_folder_without_a_scheduler_has_sd21s(base: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(base.folder, tmp_path / "bare"))
    shutil.rmtree(folder / "scheduler")
    got, expected = (open_model(str(one), base.context) for one in (folder, base.folder))
    assert got.spec == replace(expected.spec, name="bare") and got.digest == expected.digest
