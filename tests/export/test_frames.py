"""Integer convolutions of frames in every lowering, against torch; squares that float16 cannot hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import nn
from torch.nn import functional

from intsr.errors import ExportError
from intsr.export.fold.fold import FoldedLayer, FoldedNetwork, fake_quantized
from intsr.export.lower.network import lower_network
from intsr.kernels.quantizer import QuantParams, quantize_weight
from intsr.targets.lowering import LOWERINGS, Lowering

# Of uint8 and int8 activations, and of none.
NAMES = ("asymmetric", "symmetric-f32", "symmetric-rtx-f32", "weight-only-f32")
GRID = QuantParams(0.03125, 20, 8)


def layer_of(convolution: nn.Conv3d, grid: QuantParams = GRID) -> FoldedLayer:
    return FoldedLayer("0", *quantize_weight(convolution.weight.detach().numpy(), 8), grid)


def lower(module: nn.Module, layers: list[FoldedLayer], lowering: Lowering, x: Any) -> tuple[ModelProto, Any]:
    """The model, and what ONNX Runtime makes of x with it as it stands."""
    model, info_in, _ = lower_network(folded(module, layers), lowering, x.shape)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return model, session.run(None, {info_in.name: x.astype(info_in.dtype)})[0]


def folded(module: nn.Module, layers: list[FoldedLayer]) -> FoldedNetwork:
    return FoldedNetwork("encoder", module.eval().requires_grad_(False), {layer.site: layer for layer in layers})


def simulated(module: nn.Module, layers: list[FoldedLayer], x: Any, weight_only: bool = False) -> Any:
    """What the torch reference makes of x."""
    with torch.no_grad():
        return fake_quantized(folded(module, layers), weight_only)(torch.from_numpy(x)).numpy()


def off_midpoints(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """In the grid's range, and away from where two codes are equally near."""
    steps = rng.integers(0, GRID.qmax + 1, shape) - GRID.zero_point
    return ((steps + rng.uniform(-0.4, 0.4, shape)) * GRID.scale).astype(np.float32)


@pytest.mark.parametrize("let", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (1, 1, 1), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0)), ((2, 3, 5), (1, 2, 2), (0, 1, 2))],
)
def test_every_pixel_is_the_references(
    name: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], let: bool
) -> None:
    """Those at the border too, where the padded 0 is another code than the shift's."""
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    module = nn.Sequential(nn.Conv3d(4, 6, kernel, stride=stride, padding=padding))
    layer, x = layer_of(module[0]), off_midpoints(rng, (1, 4, 5, 6, 7))
    if let:
        s = (2.0 ** rng.integers(-1, 2, 4)).astype(np.float32)
        layer, x = replace(layer, let_scale=s), x * s.reshape(-1, 1, 1, 1)
    model, got = lower(module, [layer], LOWERINGS[name], x)
    expected = simulated(module, [layer], x, LOWERINGS[name].activation == "float")
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Pad"] == 0 and kinds["Conv"] == 1


def test_a_branch_of_frames() -> None:
    torch.manual_seed(2)
    rng = np.random.default_rng(1)
    module = nn.Sequential(nn.Conv3d(4, 6, 3, padding=(0, 1, 1)))
    up, down = rng.normal(size=(6, 2)), rng.normal(size=(2, 4, 3, 3, 3))
    branch = tuple(part.astype(np.float16).astype(np.float64) for part in (up, down))
    layer, x = layer_of(module[0]), off_midpoints(rng, (1, 4, 4, 5, 5))
    narrow = functional.conv3d(torch.from_numpy(x).double(), torch.from_numpy(branch[1]), padding=(0, 1, 1))
    wide = functional.conv3d(narrow, torch.from_numpy(branch[0])[:, :, None, None, None]).numpy()
    expected = simulated(module, [layer], x) + wide
    for name in ("asymmetric", "symmetric-rtx-f32"):
        _, got = lower(module, [replace(layer, branch=branch)], LOWERINGS[name], x)
        np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("convolution", "grid", "words"),
    [
        (nn.Conv3d(4, 6, 3, padding=(1, 1, 1)), GRID, "1 padded, 1 groups; expected none, and one"),
        (nn.Conv3d(4, 6, 3, padding=(0, 1, 1), groups=2), GRID, "0 padded, 2 groups"),
        (nn.Conv3d(4, 6, 3, padding=(0, 1, 1)), QuantParams(0.03125, 300, 8), "without 0 on a padded input"),
    ],
)
def test_what_has_no_form_is_refused(convolution: nn.Conv3d, grid: QuantParams, words: str) -> None:
    x = np.zeros((1, 4, 4, 5, 5), np.float32)
    with pytest.raises(ExportError, match=words):
        lower(nn.Sequential(convolution), [layer_of(convolution, grid)], LOWERINGS["symmetric-rtx-f32"], x)


class Norms(nn.Module):
    """As Wan's transformer and VAE have them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (8,), self.weight, 1e-6) + functional.normalize(x, dim=1)


def test_norms_of_large_values_are_those_of_float32() -> None:
    x = np.random.default_rng(3).uniform(500, 5000, (1, 6, 8)).astype(np.float16).astype(np.float32)
    model, got = lower(Norms(), [], LOWERINGS["symmetric"], x)
    expected = simulated(Norms(), [], x)
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=4e-3)
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 5
    model, got = lower(Norms(), [], LOWERINGS["symmetric-f32"], x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert all(node.op_type != "Cast" for node in model.graph.node)
