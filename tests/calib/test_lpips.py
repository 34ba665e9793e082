"""LPIPS against the published forward rule written out, on random weights: ImageNet's are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from intsr.calib.learn.lpips import CHANNELS, CONVOLUTIONS, Lpips
from intsr.errors import ModelError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    generator, columns = torch.Generator().manual_seed(0), 3
    tensors = {}
    for layer, (indices, channels) in enumerate(zip(CONVOLUTIONS, CHANNELS, strict=True)):
        for index, rows in zip(indices, channels, strict=True):
            name = f"net.slice{layer + 1}.{index}"
            tensors[f"{name}.weight"] = torch.randn(rows, columns, 3, 3, generator=generator) / (4.5 * columns) ** 0.5
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.1
            columns = rows
        tensors[f"lin{layer}.model.1.weight"] = torch.rand(1, columns, 1, 1, generator=generator)
    return tensors


def published(tensors: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torchvision's VGG-16 layer by layer, LPIPS's taps behind its ReLUs 3, 8, 15, 22 and 29."""
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    layers: list[nn.Module] = []
    columns = 3
    for entry in plan:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(columns, entry, 3, padding=1), nn.ReLU()]
            columns = entry
    taps = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            slice_number = next(number for tap, number in taps.items() if index <= tap) + 1
            own = {key: tensors[f"net.slice{slice_number}.{index}.{key}"] for key in ("weight", "bias")}
            layer.load_state_dict(own)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    features = []
    for x in (a, b):
        x, seen = (x - shift) / scale, []
        for index, layer in enumerate(layers):
            x = layer(x)
            if index in taps:
                seen.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(seen)
    weights = [tensors[f"lin{k}.model.1.weight"] for k in range(5)]
    parts = [nn.functional.conv2d((f - g) ** 2, w).mean() for f, g, w in zip(*features, weights, strict=True)]
    return sum(parts, torch.zeros(()))


def test_the_published_rule(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "lpips.pth")
    a, b = (torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (1, 2))
    a.requires_grad_()
    distance = Lpips(tmp_path / "lpips.pth")(a, b)
    torch.testing.assert_close(distance, published(state, a, b), rtol=1e-4, atol=1e-6)
    distance.backward()
    assert a.grad is not None and a.grad.isfinite().all() and float(a.grad.abs().max()) > 0
    assert float(Lpips(tmp_path / "lpips.pth")(b, b)) == 0


def test_another_file(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name, change in (
        ("lin3.model.1.weight", None),
        ("net.slice1.0.weight", torch.zeros(64, 3, 11, 11)),
    ):
        wrong = {key: value for key, value in state.items() if key != name}
        torch.save(wrong | ({} if change is None else {name: change}), tmp_path / "x.pth")
        with pytest.raises(ModelError, match=rf"{name} (is missing|has shape)"):
            Lpips(tmp_path / "x.pth")
