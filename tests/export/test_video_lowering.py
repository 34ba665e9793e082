"""Graphs of video models in ONNX Runtime against the torch reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from video_models import TRANSFORMER, VAE, WIDE, WIDE_VAE, write_video_model

from intsr.calib.models.video import VideoModel, load_video_model
from intsr.export.fold.fold import FoldedNetwork
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.export.lower.network import lower_chunk
from intsr.targets.lowering import LOWERINGS

LOWERING = LOWERINGS["asymmetric"]
LEAST_DB = 100
# Frames, height and width of the latents.
LATENT_SIZE = (3, 4, 6)


WIDE_ONES = pytest.param((WIDE, WIDE_VAE), marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[(TRANSFORMER, VAE), WIDE_ONES], ids=["narrow", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return load_video_model(str(write_video_model(tmp_path_factory.mktemp("wan"), *request.param)))


def psnr_db(got: np.ndarray, expected: np.ndarray) -> float:
    """Peak = the expected tensor's own range."""
    return float(20 * np.log10(np.ptp(expected) or 1) - 10 * np.log10(np.mean((got - expected) ** 2) + 1e-30))


def lower(
    name: str, module: nn.Module, inputs: Sequence[torch.Tensor]
) -> tuple[onnx.ModelProto, list[str], list[str]]:
    shapes = [tuple(tensor.shape) for tensor in inputs]
    graph, infos_in, infos_out = lower_chunk(FoldedNetwork(name, module, {}), LOWERING, shapes)
    onnx.checker.check_model(graph, full_check=True)
    assert [info.shape for info in infos_in] == shapes
    return graph, [info.name for info in infos_in], [info.name for info in infos_out]


def check(name: str, module: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the module, and that the graph has the same."""
    graph, names_in, names_out = lower(name, module, inputs)
    with torch.no_grad():
        outputs: Any = module(*inputs)
    expected = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == names_in
    feed = {key: tensor.numpy() for key, tensor in zip(names_in, inputs, strict=True)}
    for got, reference, at in zip(session.run(names_out, feed), expected, names_out, strict=True):
        assert got.shape == reference.shape and psnr_db(got, reference.numpy()) > LEAST_DB, at
    return expected


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_transformers_graph(model: VideoModel) -> None:
    module = specialize_transformer(model.load("transformer"), LATENT_SIZE).module
    check("transformer", module, random(1, 16, *LATENT_SIZE))


def test_the_encoders_graphs(model: VideoModel) -> None:
    module = specialize_encoder(model).module
    _, *memory = check("encoder", module, random(1, 3, 1, 16, 24))
    for _ in range(2):
        _, *memory = check("encoder", module, random(1, 3, 4, 16, 24), *memory)


def test_the_decoders_graphs(model: VideoModel) -> None:
    module = specialize_decoder(model).module
    _, *memory = check("decoder", module, random(1, 16, 1, 2, 3))
    for _ in range(2):
        _, *memory = check("decoder", module, random(1, 16, 1, 2, 3), *memory)


def test_the_first_frame_meets_one_tap_of_each_kernel(model: VideoModel) -> None:
    module = specialize_encoder(model).module
    first, later = random(1, 3, 1, 16, 16), random(1, 3, 4, 16, 16)
    taps = []
    for inputs in ([first], [later, *module(first)[1:]]):
        graph, *_ = lower("encoder", module, inputs)
        weights = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
        kernels = [weights[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"]
        taps.append({kernel[2] for kernel in kernels if len(kernel) == 5})
    assert taps == [{1}, {1, 3}]


def test_what_a_chunk_leaves_is_named_as_the_next_takes_it(model: VideoModel) -> None:
    module = specialize_decoder(model).module
    _, *memory = module(random(1, 16, 1, 2, 3))
    _, names_in, names_out = lower("decoder", module, [random(1, 16, 1, 2, 3), *memory])
    assert names_in == ["denoised", *(f"before.{i}" for i in range(len(memory)))]
    assert names_out == ["image", *(f"after.{i}" for i in range(len(memory)))]
