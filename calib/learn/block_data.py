"""The pairs that a block is trained on: its inputs behind the quantized blocks, and its full-precision outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from intsr.calib.learn.blocks import Call, record_input, record_output
from intsr.calib.learn.journal import CACHE_PREFIX


class PairSource(Protocol):
    """Pairs of a block's input and its target by index of the crop, (N, ...) each."""

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]: ...


class Recomputed:
    """--cache none: both networks run up to the block for every batch."""

    def __init__(
        self,
        quantized: nn.Module,
        reference: nn.Module,
        block: str,
        inputs: Sequence[torch.Tensor],
        reference_inputs: Sequence[torch.Tensor],
    ) -> None:
        self.quantized, self.reference, self.block = quantized, reference, block
        self.inputs, self.reference_inputs = inputs, reference_inputs

    def call(self) -> Call:
        return record_input(self.quantized, self.block, self.inputs[0])[1]

    def input(self, indices: Sequence[int]) -> torch.Tensor:
        """The block's inputs alone."""
        return record_input(self.quantized, self.block, torch.cat([self.inputs[i] for i in indices]))[0].contiguous()

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.input(indices)
        y = record_output(self.reference, self.block, torch.cat([self.reference_inputs[i] for i in indices]))
        # One layout, whatever keeps them: kernels that differ by rounding are chosen by it.
        return x, y.contiguous()


class KnownPairs:
    """Inputs and targets that are there already: a whole network's."""

    def __init__(self, inputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
        self._inputs, self._targets = inputs, targets

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self._inputs[i] for i in indices]), torch.cat([self._targets[i] for i in indices])


class InMemory:
    """--cache ram: every pair once."""

    def __init__(self, source: Recomputed, count: int, chunk: int) -> None:
        chunks = [source.batch(range(i, min(i + chunk, count))) for i in range(0, count, chunk)]
        self._x, self._y = (torch.cat([pair[side] for pair in chunks]) for side in (0, 1))

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.tensor(list(indices))
        return self._x[chosen], self._y[chosen]


class OnDisk:
    """--cache disk: every pair once, a file a crop, in a temporary folder below `folder`.

    None: the system's place for such. What a killed process leaves below a work folder, the next `Journal` removes.
    """

    def __init__(self, source: Recomputed, count: int, chunk: int, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=CACHE_PREFIX, dir=folder)
        for start in range(0, count, chunk):
            indices = range(start, min(start + chunk, count))
            x, y = source.batch(indices)
            for row, index in enumerate(indices):
                torch.save({"x": x[row].clone(), "y": y[row].clone()}, self._path(index))

    def _path(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.pt"

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [torch.load(self._path(index), weights_only=True) for index in indices]
        return torch.stack([pair["x"] for pair in pairs]), torch.stack([pair["y"] for pair in pairs])


def cached(source: Recomputed, cache: str, count: int, chunk: int, folder: Path | None) -> PairSource:
    """The source behind the cache that was asked for, one of CACHES."""
    if cache == "ram":
        return InMemory(source, count, chunk)
    if cache == "disk":
        return OnDisk(source, count, chunk, folder)
    assert cache == "none"
    return source
