"""Chunks of frames against diffusers' VAE over the whole film, and every chunk's function as a graph."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from video_models import VAE, WIDE_VAE, double_precision, in_chunks, write_video_model

from intsr.calib.models.video import VideoModel, load_video_model
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder

PLAIN = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.fixture(scope="module", params=[VAE, WIDE_VAE], ids=["narrow", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    """Of latents as the VAE itself has them, so that chunks alone are compared."""
    folder = write_video_model(tmp_path_factory.mktemp("wan"), vae={**request.param, **PLAIN})
    return load_video_model(str(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return load_video_model(str(write_video_model(tmp_path_factory.mktemp("small"))))


def in_precision(model: VideoModel, dtype: torch.dtype) -> tuple[VideoModel, AutoencoderKLWan]:
    """The model with its VAE in that precision, and the VAE."""
    return replace(model, vae=deepcopy(model.vae).to(dtype)), deepcopy(model.vae).to(dtype)


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("frames", "at_once"), [(1, 4), (5, 4), (17, 4), (17, 8)])
def test_encoding_in_chunks_is_encoding_the_film(
    model: VideoModel, dtype: torch.dtype, frames: int, at_once: int
) -> None:
    model, vae = in_precision(model, dtype)
    x = random(dtype, 1, 3, frames, 16, 24)
    with torch.no_grad(), double_precision():
        expected = vae.encode(x).latent_dist.mode()
    got = in_chunks(specialize_encoder(model).module, x, at_once)
    torch.testing.assert_close(got, expected, rtol=0, atol=PRECISIONS[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("frames", "at_once"), [(1, 1), (2, 1), (5, 1), (5, 2)])
def test_decoding_in_chunks_is_decoding_the_film(
    model: VideoModel, dtype: torch.dtype, frames: int, at_once: int
) -> None:
    model, vae = in_precision(model, dtype)
    z = random(dtype, 1, 16, frames, 2, 3)
    with torch.no_grad(), double_precision():
        expected = vae.decode(z, return_dict=False)[0]
    got = in_chunks(specialize_decoder(model).module, z, at_once)
    assert got.shape == (1, 3, 4 * frames - 3, 16, 24)
    torch.testing.assert_close(got.clamp(-1, 1), expected, rtol=0, atol=PRECISIONS[dtype])


def test_what_is_remembered_has_one_shape_from_the_first_chunk_on(model: VideoModel) -> None:
    for module, chunks in (
        (specialize_encoder(model).module, [random(torch.float32, 1, 3, n, 16, 16) for n in (1, 4, 4)]),
        (specialize_decoder(model).module, [random(torch.float32, 1, 16, 1, 2, 2)] * 3),
    ):
        memory: list[torch.Tensor] = []
        shapes = []
        for chunk in chunks:
            _, *memory = module(chunk, *memory)
            shapes.append([tensor.shape for tensor in memory])
        assert shapes[0] and shapes[0] == shapes[1] == shapes[2]


def test_a_later_chunk_depends_on_what_is_remembered(model: VideoModel) -> None:
    module, z = specialize_decoder(model).module, random(torch.float32, 1, 16, 1, 2, 2)
    _, *memory = module(z)
    for index in range(len(memory)):
        other = [torch.ones_like(t) if i == index else t for i, t in enumerate(memory)]
        assert not torch.equal(module(z, *memory)[0], module(z, *other)[0]), index


def assert_exported(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    """One static graph whose results are the module's."""
    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
        expected, got = module(*inputs), program.module()(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert len(program.graph_signature.user_inputs) == len(inputs)


def test_every_chunk_is_a_graph(small: VideoModel) -> None:
    encoder, decoder = specialize_encoder(small).module, specialize_decoder(small).module
    for module, first, later in (
        (encoder, random(torch.float32, 1, 3, 1, 16, 16), random(torch.float32, 1, 3, 4, 16, 16)),
        (decoder, random(torch.float32, 1, 16, 1, 2, 2), random(torch.float32, 1, 16, 1, 2, 2)),
    ):
        _, *memory = module(first)
        assert_exported(module, (first,))
        assert_exported(module, (later, *memory))


def test_the_transformer_is_a_graph(small: VideoModel) -> None:
    latent = random(torch.float32, 1, 16, 3, 4, 6)
    assert_exported(specialize_transformer(small.load("transformer"), (3, 4, 6)).module, (latent,))
