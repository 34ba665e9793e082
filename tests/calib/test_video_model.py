"""A folder of Wan's kind: what it holds, and what is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from models import edit_json
from safetensors.torch import load_file, save_file
from video_models import CONTEXT_TOKENS

from intsr.calib.models.open import open_model
from intsr.calib.models.video import load_video_model, open_video_model
from intsr.errors import ModelError

Command = Callable[..., tuple[int, str, str]]
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Wan's own names -> diffusers', as its authors' checkpoints have them.
ORIGINAL_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    (r"attn1\.to_([qkv])", r"self_attn.\1"),
    (r"attn1\.to_out\.0", "self_attn.o"),
    (r"attn2\.to_([qkv])", r"cross_attn.\1"),
    (r"attn2\.to_out\.0", "cross_attn.o"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"norm2", "norm3"),
    (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"^scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
)


@pytest.fixture
def folder(video_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny video model's folder, to be changed."""
    return Path(shutil.copytree(video_folder, tmp_path / "wan"))


def test_what_is_known_without_weights(video_folder: Path) -> None:
    source = open_video_model(str(video_folder))
    spec = source.spec
    assert (spec.name, spec.timestep, spec.sigma, spec.upscale_factor) == ("tiny-wan", 399, 0.399, 4)
    # Three halvings in the VAE, patches of 2.
    assert spec.size_multiple_px == 16
    assert len(spec.latents_mean) == len(spec.latents_std) == 16 and spec.latents_std[0] == 2.8184
    assert source.context.shape == (1, CONTEXT_TOKENS, 16)


def test_weights_and_tables_are_those_of_diffusers_own_loader(video_folder: Path) -> None:
    model = load_video_model(str(video_folder))
    for cls, part in ((WanTransformer3DModel, "transformer"), (AutoencoderKLWan, "vae")):
        expected, got = cls.from_pretrained(video_folder / part), getattr(model, part)
        assert not got.training and not any(p.requires_grad for p in got.parameters())
        for kind in ("named_parameters", "named_buffers"):
            theirs, ours = dict(getattr(expected, kind)()), dict(getattr(got, kind)())
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_several_files_with_an_index(folder: Path) -> None:
    before = load_video_model(str(folder))
    WanTransformer3DModel.from_pretrained(folder / "transformer").save_pretrained(
        folder / "transformer", max_shard_size="100KB"
    )
    (folder / "transformer" / WEIGHTS).unlink(missing_ok=True)
    assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 1
    after = load_video_model(str(folder)).transformer.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.transformer.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_authors_own_names(folder: Path, prefix: str) -> None:
    expected, path = load_video_model(str(folder)).transformer.state_dict(), folder / "transformer" / WEIGHTS
    renamed = {}
    for name, tensor in load_file(path).items():
        # norm3 has no weights here, so that norm2 alone is to be swapped.
        for ours, theirs in ORIGINAL_NAMES:
            name = re.sub(ours, theirs, name)
        renamed[f"{prefix}{name}"] = tensor
    assert f"{prefix}blocks.1.norm3.weight" in renamed and f"{prefix}blocks.0.self_attn.q.weight" in renamed
    save_file(renamed, path)
    got = load_video_model(str(folder)).transformer.state_dict()
    assert all(torch.equal(value, got[key]) for key, value in expected.items())


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_sigma_is_what_diffusers_schedulers_have_at_the_timestep_whatever_the_shift(shift: float) -> None:
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    for scheduler, unit in ((euler, 1e-6), (unipc, 1e-3)):
        scheduler.set_timesteps(20)
        # UniPC cuts the fraction off.
        torch.testing.assert_close(scheduler.timesteps / 1000, scheduler.sigmas[:-1], rtol=0, atol=unit)


def test_a_sigma_that_is_written_down_is_taken(folder: Path) -> None:
    edit_json(folder / "intsr_model.json", sigma=0.3995, timestep=399.25)
    spec = open_video_model(str(folder)).spec
    assert (spec.timestep, spec.sigma) == (399.25, 0.3995)


def test_what_is_computed_with_is_part_of_the_digest_and_a_name_is_not(folder: Path) -> None:
    digest = open_video_model(str(folder)).digest
    edit_json(folder / "intsr_model.json", name="other", licence="other")
    assert open_video_model(str(folder)).digest == digest
    edit_json(folder / "intsr_model.json", sigma=0.4)
    assert open_video_model(str(folder)).digest != digest


OTHERS = [
    (
        "transformer",
        {"_class_name": "CogVideoXTransformer3DModel"},
        "class CogVideoXTransformer3DModel; expected Wan",
    ),
    ("transformer", {"_class_name": "SD3Transformer2DModel"}, "class SD3Transformer2DModel"),
    ("transformer", {"qk_norm": "rms_norm"}, "qk_norm 'rms_norm'"),
    ("transformer", {"qk_norm": None}, "qk_norm None"),
    ("transformer", {"image_dim": 1280}, "image_dim 1280: image conditioning"),
    ("transformer", {"added_kv_proj_dim": 24}, "added_kv_proj_dim 24: image conditioning"),
    ("transformer", {"pos_embed_seq_len": 514}, "pos_embed_seq_len 514: image conditioning"),
    ("transformer", {"in_channels": 36}, "in_channels 36 (image or low-resolution conditioning beside the latents)"),
    ("transformer", {"patch_size": [2, 2, 2]}, "patch_size [2, 2, 2]"),
    ("transformer", {"attention_head_dim": 13}, "attention_head_dim 13; expected an even number"),
    ("transformer", {"num_layers": 2.0}, "num_layers 2.0"),
    ("transformer", {"window_size": [8, 8]}, "window_size [8, 8], a setting that Wan 2.1's transformer has not"),
    ("vae", {"_class_name": "AutoencoderKLCogVideoX"}, "class AutoencoderKLCogVideoX; expected AutoencoderKLWan"),
    ("vae", {"_class_name": "AutoencoderKL"}, "class AutoencoderKL; expected AutoencoderKLWan"),
    ("vae", {"is_residual": True}, "is_residual True: Wan 2.2's VAE"),
    ("vae", {"patch_size": 2}, "patch_size 2: Wan 2.2's VAE"),
    ("vae", {"attn_scales": [0.5]}, "attn_scales [0.5]"),
    ("vae", {"temperal_downsample": [False, False, True]}, "temperal_downsample [False, False, True]"),
    ("vae", {"latents_std": [0.0] * 16}, "16 numbers above 0"),
    ("vae", {"latents_mean": [float("nan")] * 16}, "latents_mean [nan"),
    ("vae", {"z_dim": 4}, "latents_mean"),
    ("vae", {"in_channels": 1}, "in_channels 1; expected 3"),
]


@pytest.mark.parametrize(("part", "values", "message"), OTHERS)
def test_other_networks_are_refused_before_weights_are_read(
    folder: Path, part: str, values: dict[str, object], message: str
) -> None:
    edit_json(folder / part / "config.json", **values)
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError) as error:
        open_video_model(str(folder))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "DDPMScheduler"}, "class DDPMScheduler; expected FlowMatchEulerDiscreteScheduler or UniPC"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "epsilon"}, "prediction_type 'epsilon'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
    ],
)
def test_schedulers_of_another_x0_are_refused(folder: Path, values: dict[str, object], message: str) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(ModelError, match=re.escape(message)):
        open_video_model(str(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timestep": 1399}, "sigma is 1.399, not in (0, 1]"),
        ({"context": None}, "no prompt context"),
        ({"upscale_factor": 0}, "upscale_factor is 0"),
        ({"sigma": "0.4"}, "sigma"),
    ],
)
def test_settings_that_cannot_be(folder: Path, values: dict[str, object], message: str) -> None:
    edit_json(folder / "intsr_model.json", **values)
    with pytest.raises(ModelError, match=re.escape(message)):
        open_video_model(str(folder))


def test_without_settings_no_timestep_is_made_up(folder: Path) -> None:
    (folder / "intsr_model.json").unlink()
    with pytest.raises(ModelError, match=r"intsr_model\.json: no such file; expected the timestep"):
        open_video_model(str(folder))


def test_a_context_of_another_width_is_refused(folder: Path) -> None:
    save_file({"context": torch.zeros(1, 7, 8)}, folder / "other.safetensors")
    with pytest.raises(ModelError, match="context of width 8; expected 16, the transformer's text_dim"):
        open_video_model(str(folder), folder / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.0.attn1.to_q.bias"), "1 missing (blocks.0.attn1.to_q.bias)"),
        (lambda w: w.update(surplus=torch.zeros(1)), "1 unknown (surplus)"),
        (lambda w: w["proj_out.bias"].fill_(torch.nan), "NaN or infinity in proj_out.bias"),
        (lambda w: w.update({"proj_out.bias": torch.zeros(3)}), "of another shape (proj_out.bias (3,)"),
    ],
)
def test_weights_that_are_not_exactly_the_configurations(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ModelError, match=re.escape(words)):
        load_video_model(str(folder))


def test_commands_for_picture_models_say_what_it_is(
    video_folder: Path, demo_picture: Path, tmp_path: Path, intsr: Command
) -> None:
    options = ("--timestep", "auto", "--images", demo_picture.parent)
    code, out, err = intsr("retrain", video_folder, *options, "-o", tmp_path / "out")
    assert (code, out) == (2, "") and "a video transformer: WanTransformer3DModel; expected a picture model" in err
    assert len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_picture_model_is_no_video_model(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="no video model"):
        open_video_model(str(tiny_folder))


def test_a_folder_that_is_of_no_known_kind_is_told_by_its_transformers_name(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ModelError, match="class SD3Transformer2DModel"):
        open_model(str(folder))
