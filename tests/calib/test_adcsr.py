"""AdcSR's two published files: against their forward rule written apart, at their real size, and damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adcsr import SMALL
from adcsr_forward import published_picture

from intsr.calib.models.cost import costs_from_architecture
from intsr.calib.models.families.adcsr import ADCSR, DECODER_NAME, NET_NAME, groups_of
from intsr.calib.models.families.adcsr_files import published_shapes
from intsr.calib.models.open import SRModel, load_model, open_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.synth import write_synthetic_adcsr
from intsr.errors import ModelError, UsageError
from intsr.export.fold.specialize import specialize
from intsr.types import DIRECT_NETWORKS, SYNTHETIC_NOTE, RunDefaults

Change = Callable[[dict[str, Any]], object]
FIRST = "module.body.1.down_blocks.0.resnets.0.conv1.weight"
AGAIN = "module.body.1.body.0.resnets.0.conv1.weight"


@pytest.fixture(scope="module")
def adcsr_model(adcsr_folder: Path) -> SRModel:
    return load_model(str(adcsr_folder))


@pytest.fixture
def damaged(adcsr_folder: Path, tmp_path: Path) -> Callable[[str, Change], Path]:
    """damaged(NAME, change) -> a copy of the folder in which the content of a file was changed."""

    def make(name: str, change: Change) -> Path:
        folder = Path(shutil.copytree(adcsr_folder, tmp_path / "model"))
        content = torch.load(folder / name, weights_only=True)
        change(content)
        torch.save(content, folder / name)
        return folder

    return make


@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
def test_pictures_are_those_of_the_published_rule(
    adcsr_folder: Path, adcsr_model: SRModel, size: tuple[int, int]
) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    expected, got, exported = published_picture(adcsr_folder, x), x, x
    networks = reference_networks(adcsr_model)
    assert tuple(networks) == DIRECT_NETWORKS == adcsr_model.spec.networks
    with torch.no_grad():
        for name, network in networks.items():
            got, exported = network(got), specialize(name, adcsr_model).module(exported)
    assert got.shape == (2, 3, 4 * size[0], 4 * size[1]) and expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-5
    torch.testing.assert_close(exported, got, rtol=0, atol=0)


def test_every_tensor_of_the_files_counts(damaged: Callable[[str, Change], Path], adcsr_model: SRModel) -> None:
    """What is loaded is the mid block that was trained, not the one in the decoder's file."""

    def change(content: dict[str, Any]) -> None:
        for name, tensor in content["state_dict"].items():
            if name.startswith(("decoder.mid_block.", "decoder.conv_in.")):
                tensor.fill_(7.0)

    loaded = load_model(str(damaged(DECODER_NAME, change)))
    for name, tensor in adcsr_model.modules.state_dict().items():
        torch.testing.assert_close(loaded.modules.state_dict()[name], tensor, rtol=0, atol=0)
    assert loaded.digest != adcsr_model.digest


def test_the_published_size() -> None:
    """As its paper counts it: 456 M parameters, 496 G multiply-accumulates at 512 x 512 pixels."""
    net, decoder = published_shapes(ADCSR)
    assert net["module.body.1.conv_in.weight"] == (240, 12, 3, 3)
    assert net["module.body.1.body.11.weight"] == net["module.body.1.conv_out.weight"] == (256, 240, 3, 3)
    assert net["module.body.1.body.4.resnets.1.conv2.weight"] == (960, 960, 3, 3)
    assert net["module.body.1.body.8.resnets.0.norm1.weight"] == (720,)
    assert net["module.body.1.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"] == (7680, 960)
    assert net["module.body.2.attentions.0.to_q.weight"] == (256, 256)
    gone = ("time", "attn2", "transformer_blocks.0.norm2")
    assert not [name for name in net if any(part in name for part in gone)]
    assert decoder["state_dict.decoder.conv_in.weight"] == (256, 4, 3, 3)
    costs = costs_from_architecture(ADCSR, 512)
    assert sum(cost.parameters for cost in costs) == 456_073_683
    assert sum(cost.macs for cost in costs) == pytest.approx(495e9, rel=0.002)


def test_groups_follow_the_published_rule() -> None:
    channels = (240, 480, 720, 960, 1440, 1920, 90, 7)
    assert [groups_of(count) for count in channels] == [24, 32, 24, 32, 32, 32, 6, 1]


def test_what_the_spec_says(adcsr_folder: Path, tmp_path: Path) -> None:
    spec = open_model(str(adcsr_folder)).spec
    assert (spec.input_factor, spec.upscale_factor, spec.size_multiple_px) == (1, 4, 16)
    assert (spec.defaults, spec.resize_filter) == (RunDefaults("adcsr", "adain"), "box")
    assert spec.synthetic and spec.licence == SYNTHETIC_NOTE
    assert ADCSR.size_multiple_px == 64
    # As the original's folders have the two files; and weights that nobody marked.
    moved = Path(shutil.copytree(adcsr_folder, tmp_path / "weight"))
    (moved / "pretrained").mkdir()
    torch.save(torch.load(moved / DECODER_NAME, weights_only=True), moved / "pretrained" / DECODER_NAME)
    (moved / DECODER_NAME).unlink()
    assert open_model(str(moved)).spec.synthetic
    torch.save(torch.load(moved / NET_NAME, weights_only=True), moved / NET_NAME)
    spec = open_model(str(moved)).spec
    assert (spec.synthetic, spec.licence, spec.name) == (False, "AdcSR's weights: Apache-2.0", "weight")


def _without(name: str) -> Change:
    return lambda content: content.pop(name)


def _other(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda content: content.__setitem__(name, make(content[name]))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (NET_NAME, _without("module.body.1.conv_in.bias"), ("1 missing (module.body.1.conv_in.bias)",)),
        (NET_NAME, _without(AGAIN), ("1 missing", AGAIN)),
        (NET_NAME, lambda content: content.update({"module.more": torch.ones(1)}), ("1 unknown (module.more)",)),
        (NET_NAME, _other("module.body.2.resnets.0.conv1.weight", lambda t: t[:1]), ("of another shape", "(1, 64")),
        (NET_NAME, _other(AGAIN, lambda t: t + 1), (FIRST, AGAIN, "differ")),
        (NET_NAME, _other("module.body.1.conv_in.weight", lambda t: t * torch.nan), ("NaN or infinity",)),
        (NET_NAME, lambda content: content.clear(), ("no tensors",)),
        (
            DECODER_NAME,
            lambda content: content["state_dict"].pop("decoder.conv_out.bias"),
            ("decoder.conv_out.bias",),
        ),
        (DECODER_NAME, lambda content: content.pop("state_dict"), ("no tensors",)),
        (
            DECODER_NAME,
            lambda content: content["state_dict"].update({"a.decoder.b": torch.ones(1)}),
            ("1 unknown", "a.decoder.b"),
        ),
    ],
)
def test_damaged_files_are_refused(
    damaged: Callable[[str, Change], Path], name: str, change: Change, words: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as error:
        load_model(str(damaged(name, change)))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_original_ignores_what_else_a_trainer_left(damaged: Callable[[str, Change], Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"]["loss.logvar"] = torch.ones(1)
        content["optimizer_states"] = [{"state": {0: {"exp_avg": torch.ones(2)}}}]
        content["epoch"] = 3

    load_model(str(damaged(DECODER_NAME, change)))


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_pickles_that_run_code_and_files_cut_short(adcsr_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adcsr_folder, tmp_path / "model"))
    whole = (folder / DECODER_NAME).read_bytes()
    torch.save({"state_dict": {}, "hook": RunsCode(tmp_path / "ran")}, folder / DECODER_NAME)
    with pytest.raises(ModelError, match="refused: unpickling it would run code"):
        open_model(str(folder))
    assert not (tmp_path / "ran").exists()
    (folder / DECODER_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cut short"):
        open_model(str(folder))


@pytest.mark.parametrize("missing", [NET_NAME, DECODER_NAME])
def test_one_file_alone_is_refused(adcsr_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = Path(shutil.copytree(adcsr_folder, tmp_path / "model"))
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=f"without {missing}"):
        open_model(str(folder))


def test_other_widths_and_what_has_no_place_here(adcsr_folder: Path, tmp_path: Path) -> None:
    for option, value in (("context", tmp_path), ("lora", tmp_path), ("prompt", "a harbour")):
        with pytest.raises(UsageError, match=f"--{option}: together with AdcSR; expected none: AdcSR has neither"):
            open_model(str(adcsr_folder), **{option: value})
    uneven = replace(SMALL, widths=(64, 96), attention=(False, False))
    write_synthetic_adcsr(uneven, tmp_path / "uneven")
    with pytest.raises(ModelError, match="a block of 64 channels"):
        open_model(str(tmp_path / "uneven"))


def test_random_weights_are_the_same_again(tmp_path: Path, adcsr_folder: Path) -> None:
    again = write_synthetic_adcsr(SMALL, tmp_path / "again")
    assert open_model(str(tmp_path / "again")).digest == open_model(str(adcsr_folder)).digest
    assert again.parameters == {"unet": 1_583_488, "vae": 816_803}
    write_synthetic_adcsr(SMALL, tmp_path / "other", seed=1)
    assert open_model(str(tmp_path / "other")).digest != open_model(str(adcsr_folder)).digest
    # Tensors under two names are stored once.
    assert (tmp_path / "again" / NET_NAME).stat().st_size < 4 * 1.2 * again.parameters["unet"]
