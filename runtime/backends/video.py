"""The networks of a video engine over a chunk of frames; a picture is a clip that stands still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.memory import resident_bytes
from intsr.runtime.backends.protocol import Backend, LayerTime, ManyTensorNetwork
from intsr.types import VIDEO_NETWORKS, TensorInfo

if TYPE_CHECKING:
    from intsr.manifest import ChunkEntry

Record = Callable[[str, float], None]


class StillNetwork:
    """All of them as one network of pictures: (1, 3, S, S) -> (1, 3, S, S)."""

    def __init__(self, backend: VideoBackend, info: TensorInfo) -> None:
        shape = (*info.shape[:2], *info.shape[3:])
        self.input, self.output = (TensorInfo(name, shape, info.dtype) for name in ("picture", "upscaled"))
        self._backend = backend

    def run(self, x: Array) -> Array:
        chunk = np.repeat(x[:, :, None], self._backend.chunk.frames, axis=2)
        return np.concatenate(list(self._backend.run_chunk(chunk)), axis=2)[:, :, 0]

    def close(self) -> None:
        """The backend closes the networks."""


class VideoBackend(Backend):
    """networks: open, in the order of `VIDEO_NETWORKS`. precision: as of `Backend`."""

    chunk: ChunkEntry

    def __init__(self, networks: Sequence[Any], chunk: ChunkEntry, precision: str | None = None) -> None:
        self.chunk = chunk
        self._open: dict[str, Any] = dict(zip(VIDEO_NETWORKS, networks, strict=True))
        super().__init__([StillNetwork(self, networks[0].entry.inputs[0])], precision, ("video",))

    def network(self, name: str) -> Any:
        return self._open[name]

    def layer_times_ms(self) -> dict[str, list[LayerTime]]:
        """As of `Backend`, of the last time that each network ran in a chunk."""
        return {name: network.layer_times_ms() for name, network in self._open.items()}

    def run_chunk(self, x: Array, record: Record = lambda name, ms: None) -> Iterator[Array]:
        """(1, 3, F, S, S) in [-1, 1] -> (1, 3, f, S, S), nominally in [-1, 1], f in all the chunk's frames, as they
        come out of the decoder. record: told each network's name and milliseconds.
        """
        before = resident_bytes() if self.activation_bytes is None else 0
        yield from self.decode(self.denoise(self.encode(x, record), record), record)
        if self.activation_bytes is None:
            self.activation_bytes = max(resident_bytes() - before, 0)

    def encode(self, x: Array, record: Record = lambda name, ms: None) -> Array:
        """(1, 3, F, S, S) in [-1, 1] -> the latents of all frames, (1, C, n, s, s)."""
        latents, memory = list[Array](), list[Array]()
        for first, last in self._places():
            (latent, *memory) = self._run("encoder", [x[:, :, first:last], *memory], record)
            latents.append(latent)
        return np.concatenate(latents, axis=2)

    def denoise(self, latents: Array, record: Record = lambda name, ms: None) -> Array:
        """Latents -> denoised latents, the same shape."""
        (denoised,) = self._timed("transformer", [latents], record)
        return denoised

    def decode(self, denoised: Array, record: Record = lambda name, ms: None) -> Iterator[Array]:
        """Latents (1, C, n, s, s) -> the frames of each, (1, 3, f, S, S)."""
        memory: list[Array] = []
        for index in range(denoised.shape[2]):
            (frames, *memory) = self._run("decoder", [denoised[:, :, index : index + 1], *memory], record)
            yield frames

    def _places(self) -> Iterator[tuple[int, int]]:
        """The frames of each latent."""
        yield 0, 1
        step = self.chunk.frames_per_latent
        for first in range(1, self.chunk.frames, step):
            yield first, first + step

    def _run(self, name: str, tensors: list[Array], record: Record) -> list[Array]:
        """tensors: the first alone at the start of a chunk, then what was remembered, too."""
        return self._timed(f"{name}_{'start' if len(tensors) == 1 else 'next'}", tensors, record)

    def _timed(self, name: str, tensors: list[Array], record: Record) -> list[Array]:
        start = time.perf_counter()
        network: ManyTensorNetwork = self._open[name]
        results = network.run_all(tensors)
        record(name, (time.perf_counter() - start) * 1e3)
        return results

    def close(self) -> None:
        for network in self._open.values():
            network.close()
