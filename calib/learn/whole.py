"""All networks together, on the picture: what reverse training judges by, and trains last.

The loss of a step is PICTURE_WEIGHT |picture_q - picture|^2 / |picture|^2 + PERCEPTUAL_WEIGHT times a perceptual
distance; targets are full precision's own pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from intsr.calib.calibration.types import PhaseName
from intsr.calib.learn.block_data import KnownPairs
from intsr.calib.learn.blocks import blocks_by_name
from intsr.calib.learn.method import recomputed
from intsr.calib.learn.quantized_layer import QuantizedLayer
from intsr.calib.learn.stages import Curves, Run, mean_square, outputs, run_stage, with_steps
from intsr.calib.models.families.sd21 import network_of_site

PICTURE_WEIGHT, PERCEPTUAL_WEIGHT = 1.0, 0.01


class WholeModel:
    """The quantized networks, and full precision's inputs and pictures of every crop."""

    def __init__(
        self,
        references: Mapping[str, nn.Module],
        quantized: Mapping[str, nn.Module],
        crops: list[torch.Tensor],
        run: Run,
    ) -> None:
        """quantized: by name, as `references`; layers may take their places in them later."""
        self.quantized, self.run = quantized, run
        self.names = tuple(references)
        # Exact inputs of each network.
        self.inputs: dict[str, list[torch.Tensor]] = {}
        values = crops
        for name in references:
            self.inputs[name] = values
            values = outputs(references[name], values)
        # The same with the pictures that full precision makes of them.
        self.pairs = {name: KnownPairs(inputs, values) for name, inputs in self.inputs.items()}
        self.energy = mean_square([values[i] for i in run.crops.held_out_indices])

    def picture(self, network: str, x: torch.Tensor) -> torch.Tensor:
        """The picture that an input of `network` becomes, float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.run.options.mixed):
            for name in self.names[self.names.index(network) :]:
                x = self.quantized[name](x)
        return x.float()

    def picture_error(self, picture: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """|picture - exact|^2 / |exact|^2, the latter over held-out crops."""
        return (picture - exact).square().mean() / self.energy

    def loss(self, indices: Sequence[int]) -> torch.Tensor:
        """Of all networks on some crops."""
        x, exact = self.pairs[self.names[0]].batch(indices)
        picture = self.picture(self.names[0], x)
        distance = self.run.distance(picture, exact)
        return PICTURE_WEIGHT * self.picture_error(picture, exact) + PERCEPTUAL_WEIGHT * distance

    @contextmanager
    def recomputed(self, layers: Mapping[str, QuantizedLayer]) -> Iterator[None]:
        """Within, activations are computed twice where the options ask for it (`method.recomputed`)."""
        with ExitStack() as stack:
            for name, network in self.quantized.items() if self.run.options.recompute else ():
                own = [site for site in layers if network_of_site(site) == name]
                stack.enter_context(recomputed(network, list(blocks_by_name(network, own))))
            yield

    def train(self, layers: tuple[QuantizedLayer, ...]) -> Curves:
        """The method's stages for everything."""
        curves: Curves = {}
        for stage, steps in with_steps(self.run.method.whole, self.run.options.joint_steps):
            phase = PhaseName("all", "", stage.name)
            curves |= run_stage(self.run, phase, stage, layers, steps=steps, loss=lambda: self.loss)
        return curves
