"""Integers in video networks: ranges over clips, folding, and graphs against their torch reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from video_models import TRANSFORMER, VAE, WIDE, WIDE_VAE, write_video_model

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.wan import VIDEO_FLOAT_SITES, VIDEO_PARTS
from intsr.calib.models.modules import video_layers_of
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.calib.observe.fake_quant import FakeQuantLayer
from intsr.calib.observe.video import observe_video
from intsr.errors import CalibrationError, ExportError
from intsr.export.fold.fold import FoldedNetwork, fake_quantized
from intsr.export.fold.video.integers import fold_video_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.types import SpecializedVideoNetwork
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.lower.network import lower_chunk
from intsr.kernels.quantizer import quantize
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
    assert seen.keys() == calibration.sites.keys() | VIDEO_FLOAT_SITES
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
        expected = _first(networks[name].module, inputs)
        got = _first(fake_quantized(fold_video_network(specialized(model)[name], calibration)), inputs)
        error = got - expected
        assert 0 < float(error.square().mean()) < 0.02 * float(expected.var()), name


def _first(module: nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: Any = module(*inputs)
    return result if isinstance(result, torch.Tensor) else result[0]


def teacher_forced(network: FoldedNetwork, inputs: list[torch.Tensor]) -> tuple[dict[str, int], float]:
    """How many codes differ at each quantizer beyond what rounding explains, and the first output's PSNR, given the
    reference's codes upstream.
    """
    reference, expected = fake_quantized(network), dict[str, NDArray[np.uint8]]()
    for site, layer in reference.named_modules():
        if isinstance(layer, FakeQuantLayer):
            layer.register_forward_pre_hook(
                lambda module, given, site=site: expected.__setitem__(
                    site, quantize(given[0].numpy(), module.activation)
                )
            )
    output = _first(reference, inputs).numpy()
    graph, infos_in, _ = lower_chunk(network, LOWERINGS["asymmetric-cpu"], [tuple(t.shape) for t in inputs])
    feeds = {info.name: tensor.numpy() for info, tensor in zip(infos_in, inputs, strict=True)}
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    quantized = {node.output[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    sites = []
    for node in graph.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in quantized:
            continue
        site, source = node.name.removesuffix(".dequantize"), node.input[0]
        taps, whole = weights[f"{site}.weight"].dims, network.layers[site].weight_codes.shape
        if len(whole) == 5 and taps[2] < whole[2]:
            # The graph of a first frame has no zeros in front.
            expected[site] = expected[site][:, :, -1:]
        node.input[0] = f"{site}.forced"
        kind = onnx.TensorProto.UINT8
        graph.graph.input.append(onnx.helper.make_tensor_value_info(node.input[0], kind, expected[site].shape))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(source, kind, expected[site].shape))
        feeds[node.input[0]] = expected[site]
        sites.append((site, source))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got, *codes = session.run([graph.graph.output[0].name, *(source for _, source in sites)], feeds)
    differing = {}
    for (site, _), own in zip(sites, codes, strict=True):
        # Tensors are small: one rounding that falls the other way may be more than a thousandth.
        allowed = max(2, own.size // 1000)
        differing[site] = max(int(np.sum(own != expected[site])) - allowed, 0)
    psnr_db = 20 * np.log10(np.ptp(output)) - 10 * np.log10(np.mean((got - output) ** 2) + 1e-30)
    return differing, float(psnr_db)


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
        assert every - folded.layers.keys() == every & VIDEO_FLOAT_SITES, name
        for site in folded.layers:
            assert torch.isnan(folded.module.get_submodule(site).weight).all()


def test_parts_that_are_not_calibrated_stay_float(model: VideoModel, calibration: Calibration) -> None:
    alone = replace(calibration, parts=("transformer",))
    assert not fold_video_network(specialize_encoder(model), alone).layers
    assert fold_video_network(specialized(model)["transformer"], alone).layers


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda sites: {k: v for k, v in sites.items() if "to_out" not in k}, CalibrationError, "no range for"),
        (lambda sites: sites, ExportError, "lowered as symmetric"),
    ],
)
def test_what_cannot_be_folded_or_lowered_is_refused(
    model: VideoModel, calibration: Calibration, change: Callable[..., Any], error: type[Exception], words: str
) -> None:
    changed = replace(calibration, sites=change(calibration.sites))
    with pytest.raises(error, match=words):
        fold_video_network(specialized(model)["transformer"], changed)
        encoder = fold_video_network(specialize_encoder(model), changed)
        lower_chunk(encoder, LOWERINGS["symmetric-f32"], [(1, 3, 1, SIDE_PX, SIDE_PX)])


def test_activations_that_are_not_finite_are_refused(model: VideoModel, clip: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        observe_video(model, [clip * torch.inf], W8A8, ("vae",))
