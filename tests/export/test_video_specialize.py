"""Specialized networks against what diffusers' own classes compute, written out here as its Wan pipeline has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from video_models import TRANSFORMER, VAE, WIDE, WIDE_VAE, double_precision, in_chunks, in_double, write_video_model

from intsr.calib.models.video import VideoModel, load_video_model
from intsr.errors import ExportError
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder

TOLERANCE = 1e-9
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "diffusers' own": (TRANSFORMER, VAE),
    "wide, no norm in front of the text": (WIDE, WIDE_VAE),
    "wide": ({**WIDE, "cross_attn_norm": True}, {**WIDE_VAE, "num_res_blocks": 1}),
}


@dataclass(frozen=True)
class Pipeline:
    """The arithmetic of diffusers' Wan pipelines, for one step of flow matching."""

    model: VideoModel

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.model.vae.config
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return (self.model.vae.encode(x).latent_dist.mode() - mean) / std

    def denoise(self, z: torch.Tensor) -> torch.Tensor:
        timestep, context = torch.tensor([399]), self.model.context.double()
        v = self.model.transformer(z, timestep=timestep, encoder_hidden_states=context, return_dict=False)[0]
        return z - 0.399 * v

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return self.model.vae.decode(x0 * std + mean, return_dict=False)[0]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    folder = write_video_model(tmp_path_factory.mktemp("wan"), *MODELS[request.param])
    return in_double(load_video_model(str(folder)))


def film(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, 3, frames, height, width, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("size", [(5, 32, 48), (9, 48, 32), (1, 32, 32)])
def test_specialized_equals_diffusers_own_arithmetic(model: VideoModel, size: tuple[int, int, int]) -> None:
    pipeline, x = Pipeline(model), film(*size)
    with torch.no_grad(), double_precision():
        latent = pipeline.encode(x)
        denoised = pipeline.denoise(latent)
        image = pipeline.decode(denoised)
    latent_size = (1 + (size[0] - 1) // 4, size[1] // 8, size[2] // 8)
    assert latent.shape == (1, 16, *latent_size)
    # Were what is compared flat, it would say nothing.
    assert min(t.std() for t in (latent, denoised - latent, image)) > 1e-3
    with torch.no_grad():
        got_latent = in_chunks(specialize_encoder(model).module, x, 4)
        got_denoised = specialize_transformer(model.load("transformer"), latent_size).module(latent)
        got_image = in_chunks(specialize_decoder(model).module, denoised, 1)
    for expected, got in ((latent, got_latent), (denoised, got_denoised), (image, got_image.clamp(-1, 1))):
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * float(expected.std()))


def test_modulation_time_text_and_its_projections_are_gone(model: VideoModel) -> None:
    before = set(model.transformer.state_dict())
    network = specialize_transformer(model.load("transformer"), (2, 4, 4)).module
    names = {name.removeprefix("transformer.") for name in network.state_dict()} - {"cosines_0", "sines_0"}
    constants = {name for name in names if name.endswith((".attn2.key", ".attn2.value"))}
    modulated = {name for name in names - before if ".norm1." in name or ".norm3." in name or "norm_out" in name}
    assert len(constants) == 2 * len(model.transformer.blocks) and names - constants - modulated < before
    assert len(modulated) == 2 * (2 * len(model.transformer.blocks) + 1)
    gone = {name.split(".", 2)[-1] if name.startswith("blocks.") else name for name in before - names}
    expected = {f"attn2.{name}.{kind}" for name in ("to_k", "to_v") for kind in ("weight", "bias")}
    embedder = {name for name in before if name.startswith("condition_embedder.")}
    assert gone == expected | embedder | {"attn2.norm_k.weight", "scale_shift_table"}


def test_factors_are_what_weights_were_multiplied_by(model: VideoModel) -> None:
    network = specialize_transformer(model.load("transformer"), (2, 4, 4))
    before = {f"transformer.{name}": value for name, value in model.transformer.state_dict().items()}
    after = network.module.state_dict()
    sites = network.row_factors.keys() | network.column_factors.keys()
    shared = [name for name in after if name.endswith(".weight") and name in before]
    changed = {name for name in shared if not torch.equal(after[name], before[name])}
    assert changed == {f"{site}.weight" for site in sites}
    for site in sites:
        weight = before[f"{site}.weight"]
        if site in network.row_factors:
            weight = network.row_factors[site][:, None] * weight
        torch.testing.assert_close(after[f"{site}.weight"], weight * network.column_factors.get(site, 1.0))


def test_the_original_model_is_untouched(model: VideoModel) -> None:
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    specialize_transformer(model.load("transformer"), (2, 4, 4))
    after = model.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("changes", [{"timestep": 3.0}, {"sigma": 0.2}, {"context": torch.randn(1, 5, 16)}])
def test_each_constant_is_used(model: VideoModel, changes: dict[str, Any]) -> None:
    spec = {key: value for key, value in changes.items() if key != "context"}
    other = replace(model, spec=replace(model.spec, **spec), context=changes.get("context", model.context))
    latent = torch.randn(1, 16, 2, 4, 4, dtype=torch.float64)
    results = [specialize_transformer(m.load("transformer"), (2, 4, 4)).module(latent) for m in (model, other)]
    assert (results[0] - results[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("size", "words"), [((1, 5, 4), "multiples of 2 x 2"), ((33, 4, 4), "at most 32 along each axis")]
)
def test_sizes_that_it_cannot_take(video_folder: Path, size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        specialize_transformer(load_video_model(str(video_folder)), size)
