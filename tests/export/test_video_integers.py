"""Integers in video networks: ranges over clips, folding, and graphs against their torch reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from video_graphs import first_output, teacher_forced
from video_models import TRANSFORMER, VAE, WIDE, WIDE_VAE, stays_float, write_video_model

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.modules import video_layers_of
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.observe.video import observe_video
from intsr.errors import CalibrationError
from intsr.export.fold.fold import fake_quantized
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.types import SpecializedVideoNetwork
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.lower.network import lower_chunk
from intsr.targets.lowering import LOWERINGS
from intsr.types import Bits

Specialized = dict[str, SpecializedVideoNetwork]
FRAMES, SIDE_PX = 9, 32
LATENT_SIZE = (3, 4, 4)
W8A8 = Bits(8, 8)
WIDE_ONES = pytest.param((WIDE, WIDE_VAE), marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[(TRANSFORMER, VAE), WIDE_ONES], ids=["narrow", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return load_video_model(str(write_video_model(tmp_path_factory.mktemp("wan"), *request.param)))


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(1, 3, FRAMES, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.fixture(scope="module")
def calibration(model: VideoModel, clip: torch.Tensor) -> Calibration:
    sites = observe_video(model, [clip, clip.flip(2)], W8A8, VIDEO_PARTS)
    return Calibration("maxmin", W8A8, VIDEO_PARTS, "tiny-wan", model.digest, 2, 8, 0.0, 0, sites)


def specialized(model: VideoModel) -> Specialized:
    return {
        "encoder": specialize_encoder(model),
        "transformer": specialize_transformer(model.load("transformer"), LATENT_SIZE),
        "decoder": specialize_decoder(model),
    }


@torch.no_grad()
def run(modules: dict[str, nn.Module], frames: torch.Tensor) -> list[tuple[str, list[torch.Tensor]]]:
    """The inputs of every call of a network over a chunk, in order."""
    calls, latents, memory = list[tuple[str, list[torch.Tensor]]](), list[torch.Tensor](), list[torch.Tensor]()

    def call(name: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
        calls.append((name, list(tensors)))
        result: Any = modules[name](*tensors)
        return [result] if isinstance(result, torch.Tensor) else list(result)

    for part in (frames[:, :, :1], *frames[:, :, 1:].split(4, 2)):
        latent, *memory = call("encoder", part, *memory)
        latents.append(latent)
    (denoised,) = call("transformer", torch.cat(latents, 2))
    memory = []
    for part in denoised.split(1, 2):
        _, *memory = call("decoder", part, *memory)
    return calls


def test_calibration_sees_what_engines_networks_are_given(
    model: VideoModel, calibration: Calibration, clip: torch.Tensor
) -> None:
    """The model's own modules and the specialized ones, where rows alone have moved."""
    seen: dict[str, list[torch.Tensor]] = {}
    networks = specialized(model)
    for network in networks.values():
        for site, layer in video_layers_of(network.module).items():
            layer.register_forward_pre_hook(
                lambda _, inputs, site=site: seen.setdefault(site, []).append(inputs[0].flatten())
            )
    for frames in (clip, clip.flip(2)):
        run({name: network.module for name, network in networks.items()}, frames)
    assert seen.keys() == calibration.sites.keys() | stays_float(seen)
    for site, quantizer in calibration.sites.items():
        values = torch.cat(seen[site])
        # A mean of extremes lies within the extremes of all.
        assert float(values.min()) - 1e-4 <= quantizer.x_min <= 0 <= quantizer.x_max <= float(values.max()) + 1e-4
        if site.startswith("transformer."):
            ends = [(min(float(v.min()), 0), max(float(v.max()), 0)) for v in seen[site]]
            assert np.allclose(np.mean(ends, axis=0), (quantizer.x_min, quantizer.x_max), atol=1e-4), site


def test_integers_are_near_the_model(model: VideoModel, calibration: Calibration, clip: torch.Tensor) -> None:
    networks = specialized(model)
    for name, inputs in run({name: network.module for name, network in networks.items()}, clip):
        expected = first_output(networks[name].module, inputs)
        got = first_output(fake_quantized(fold_video_network(specialized(model)[name], calibration)), inputs)
        error = got - expected
        assert 0 < float(error.square().mean()) < 0.02 * float(expected.var()), name


def test_graphs_have_the_codes_of_the_reference(
    model: VideoModel, calibration: Calibration, clip: torch.Tensor
) -> None:
    folded = {name: fold_video_network(network, calibration) for name, network in specialized(model).items()}
    calls = run({name: network.module for name, network in specialized(model).items()}, clip)
    met: set[str] = set()
    # First and next of the VAE's halves, and the transformer.
    for name, inputs in (calls[0], calls[1], calls[3], calls[4], calls[5]):
        differing, psnr_db = teacher_forced(folded[name], inputs)
        assert not any(differing.values()) and psnr_db >= 100, (name, psnr_db, differing)
        met |= differing.keys()
    # One of q, k and v stands for all three.
    shared = {site for site in calibration.sites if site.endswith((".attn1.to_k", ".attn1.to_v"))}
    assert met == calibration.sites.keys() - shared


def test_what_stays_float(model: VideoModel, calibration: Calibration) -> None:
    for name, network in specialized(model).items():
        every = set(video_layers_of(network.module))
        folded = fold_video_network(network, calibration)
        assert every - folded.layers.keys() == stays_float(every), name
        for site in folded.layers:
            assert torch.isnan(folded.module.get_submodule(site).weight).all()


def test_parts_that_are_not_calibrated_stay_float(model: VideoModel, calibration: Calibration) -> None:
    alone = replace(calibration, parts=("transformer",))
    assert not fold_video_network(specialize_encoder(model), alone).layers
    assert fold_video_network(specialized(model)["transformer"], alone).layers


def test_a_layer_without_a_range_is_refused(model: VideoModel, calibration: Calibration) -> None:
    sites = {site: quantizer for site, quantizer in calibration.sites.items() if "to_out" not in site}
    with pytest.raises(CalibrationError, match="no range for"):
        fold_video_network(specialized(model)["transformer"], replace(calibration, sites=sites))


@pytest.mark.parametrize("name", ["symmetric-f32", "symmetric-rtx-f32"])
def test_symmetric_graphs_are_as_near_as_rounding_lets_them(
    model: VideoModel, calibration: Calibration, clip: torch.Tensor, name: str
) -> None:
    """Nothing is forced: codes that round the other way go on, and stay below what integers cost."""
    calls = run({of: network.module for of, network in specialized(model).items()}, clip)
    folded = {of: fold_video_network(network, calibration) for of, network in specialized(model).items()}
    for of, inputs in (calls[0], calls[1], calls[3], calls[4], calls[5]):
        graph, infos_in, infos_out = lower_chunk(folded[of], LOWERINGS[name], [tuple(t.shape) for t in inputs])
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
        feeds = {info.name: tensor.numpy() for info, tensor in zip(infos_in, inputs, strict=True)}
        (got,) = session.run([infos_out[0].name], feeds)
        simulated = first_output(fake_quantized(folded[of]), inputs).numpy()
        exact = first_output(specialized(model)[of].module, inputs).numpy()
        errors = [np.square(one - simulated).mean() for one in (got, exact)]
        assert errors[0] < errors[1], (of, errors)


def test_activations_that_are_not_finite_are_refused(model: VideoModel, clip: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        observe_video(model, [clip * torch.inf], W8A8, ("vae",))
