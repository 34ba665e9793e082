"""A video engine's networks on a GPU: frames and latents come and go, what is remembered stays there.

What an encoder or decoder leaves to the next of its chunk lies in one of two sets of buffers, and the next one reads
that and leaves its own in the other. Nobody but these networks looks into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.manifest import ChunkEntry
from intsr.runtime.backends.protocol import EntryNetwork, checked_input
from intsr.runtime.backends.tensorrt.session import OnDevice, Session, Stage, size_bytes_from_info
from intsr.runtime.backends.video import VideoBackend
from intsr.types import TensorInfo

SETS = 2


@dataclass(frozen=True, slots=True)
class Remembered:
    """Stands for a tensor that stayed on the device. place: which of the `SETS` it lies in."""

    place: int


class TensorRTVideoNetwork(EntryNetwork):
    """One of the networks. sets: addresses of what is remembered, in the order of the entry's tensors."""

    def __init__(self, session: Session, stage: Stage, sets: Sequence[Sequence[int]]) -> None:
        self.entry = stage.entry
        self._session, self._stage, self._sets = session, stage, sets
        first, last = self.entry.inputs[0], self.entry.outputs[0]
        self._input_address, self._output_address = (session.alloc(size_bytes_from_info(i)) for i in (first, last))

    def run_all(self, tensors: Sequence[Any]) -> list[Any]:
        """Do as `ManyTensorNetwork`; all tensors but the first are, and stay, on the device: `Remembered`."""
        session, cuda, stream = self._session, self._session.cuda, self._session.compute
        session.enter()
        x, *remembered = tensors
        x = checked_input(x, self.entry.inputs[0])
        taken = remembered[0].place if remembered else SETS - 1
        left = (taken + 1) % SETS
        before = self._sets[taken] if remembered else []
        after = self._sets[left] if len(self.entry.outputs) > 1 else []
        result: Array = np.empty(self.entry.outputs[0].shape, self.entry.outputs[0].dtype)
        try:
            cuda.upload(self._input_address, x, stream)
            self._stage.run(self._input_address, *before, self._output_address, *after)
            cuda.download(result, self._output_address, stream)
            cuda.synchronize(stream)
        except BaseException:
            # Neither x nor the result may go while a copy is at them.
            session.drain()
            raise
        return [result, *(Remembered(left) for _ in after)]

    def close(self) -> None:
        self._session.close()


class TensorRTVideoBackend(OnDevice, VideoBackend):
    """All networks of a video engine on one GPU, in one session."""

    def __init__(self, session: Session, stages: Sequence[Stage], chunk: ChunkEntry, precision: str) -> None:
        """stages: in the order of `VIDEO_NETWORKS`."""
        of_encoder, of_decoder = (_sets(session, stages[index].entry.outputs[1:]) for index in (0, 3))
        sets = (of_encoder, of_encoder, (), of_decoder, of_decoder)
        networks = [TensorRTVideoNetwork(session, *each) for each in zip(stages, sets, strict=True)]
        VideoBackend.__init__(self, networks, chunk, precision)
        self._session, self._stages = session, stages
        self.device = str(session.cuda.device)


def _sets(session: Session, infos: Sequence[TensorInfo]) -> list[list[int]]:
    """Addresses of buffers for as many tensors as a network remembers, twice."""
    return [[session.alloc(size_bytes_from_info(info)) for info in infos] for _ in range(SETS)]
