"""LPIPS, where its weights are at hand: the distance of VGG-16's features, channel by channel weighted by the eye.

    d = sum over 5 layers of  mean over pixels of  w . (f_a / |f_a| - f_b / |f_b|)^2

The file is the whole state of `lpips.LPIPS(net="vgg")`, version 0.1: its trunk is torchvision's.
Source: Zhang and others, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from intsr.calib.models.tensor_files import read_checkpoint
from intsr.errors import ModelError

# By layer, the convolutions' numbers in torchvision's `vgg16().features`; all but the first follow a max pool.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10
EXPECTED = 'the state of lpips.LPIPS(net="vgg"): torch.save(LPIPS(net="vgg").state_dict(), FILE)'


class Lpips:
    """(N, 3, H, W) float32 in [-1, 1] twice, sides of at least 16 -> scalar."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Raises ModelError for a file that is not LPIPS's."""
        tensors, columns = dict(read_checkpoint(path).tensors), 3
        self.convolutions: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.weights: list[torch.Tensor] = []

        def taken(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            tensor = tensors.get(name)
            if tensor is None or tuple(tensor.shape) != shape:
                got = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise ModelError(path, f"{name} {got}", EXPECTED)
            return tensor.float().to(device)

        for layer, (indices, channels) in enumerate(zip(CONVOLUTIONS, CHANNELS, strict=True)):
            self.convolutions.append([])
            for index, rows in zip(indices, channels, strict=True):
                name = f"net.slice{layer + 1}.{index}"
                shapes = (rows, columns, 3, 3), (rows,)
                self.convolutions[-1].append((taken(f"{name}.weight", shapes[0]), taken(f"{name}.bias", shapes[1])))
                columns = rows
            self.weights.append(taken(f"lin{layer}.model.1.weight", (1, columns, 1, 1)))
        self.shift, self.scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = (torch.cat([a, b]) - self.shift) / self.scale
        total = a.new_zeros(())
        for layer, convolutions in enumerate(self.convolutions):
            if layer:
                x = functional.max_pool2d(x, 2)
            for weight, bias in convolutions:
                x = functional.conv2d(x, weight, bias, padding=1).relu()
            # The second epsilon is for the root's gradient where all features are 0.
            unit = x / ((x.square().sum(1, keepdim=True) + NORM_EPSILON**2).sqrt() + NORM_EPSILON)
            of_a, of_b = unit.chunk(2)
            total = total + functional.conv2d((of_a - of_b).square(), self.weights[layer]).mean()
        return total
