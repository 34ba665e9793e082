"""The three networks over many tiles: while one is computed, the next comes up and the one before goes down.

Two streams, and two slots of buffers for each picture that is under way. Into the copy stream go upload(0),
upload(1), download(0), upload(2), download(1) and so on: never a download, which waits for its tile's networks, ahead
of the next tile's upload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import EngineMismatchError
from intsr.runtime.backends.tensorrt.session import Session, Stage, size_bytes_from_info

SLOTS = 2
# Beside the networks' own, which are the ends of their runs.
_MARKS = ("upload", "uploaded", "start", "download", "downloaded")


@dataclass(frozen=True, slots=True)
class Slot:
    """Buffers of one tile on its way, page-locked and on the device. events: by `_MARKS` and by network."""

    host_input: Array
    host_output: Array
    input_address: int
    output_address: int
    events: dict[str, Any]


class Pipeline:
    """The networks after one another, what they hand on never leaving the device.

    addresses: of each network's input and output buffers, for other uses: those at the ends are in no slot.
    """

    def __init__(self, session: Session, stages: Sequence[Stage]) -> None:
        self._session, self._stages = session, tuple(stages)
        for first, second in pairwise(stages):
            handed, taken = first.output, second.input
            if (handed.shape, handed.dtype) != (taken.shape, taken.dtype):
                got = f"{first.name} gives {handed.shape} {handed.dtype}"
                raise EngineMismatchError(session.where, got, f"{taken.shape} {taken.dtype} for the {second.name}")
        self._between = [session.alloc(size_bytes_from_info(stage.output)) for stage in stages[:-1]]
        start, end = (session.alloc(size_bytes_from_info(info)) for info in (stages[0].input, stages[-1].output))
        self.addresses = tuple(pairwise([start, *self._between, end]))
        # Of pictures that have ended. Mostly one comes after another, and takes the same.
        self._free_slots = [self._make_slots()]
        session.on_close(self._free_slots.clear)

    def _make_slots(self) -> list[Slot]:
        session, first, last = self._session, self._stages[0].input, self._stages[-1].output
        marks = (*_MARKS, *(stage.name for stage in self._stages))
        return [
            Slot(
                session.alloc_pinned(first),
                session.alloc_pinned(last),
                session.alloc(size_bytes_from_info(first)),
                session.alloc(size_bytes_from_info(last)),
                {mark: session.create_event() for mark in marks},
            )
            for _ in range(SLOTS)
        ]

    def run_batches(self, batches: Iterable[Array], record: Callable[[str, float], None]) -> Generator[Array]:
        """Run tiles as `TilePipeline` says. Each batch is read when the one before it is being computed.

        Between two steps other pictures may be begun and ended. Raises EngineMismatchError, OutOfMemoryError; nothing
        of this picture is on the device then.
        """
        session = self._session
        session.enter()
        slots = self._free_slots.pop() if self._free_slots else self._make_slots()
        waiting: deque[Slot] = deque()
        try:
            for index, batch in enumerate(batches):
                # Each step may be another thread's.
                session.enter()
                slot = slots[index % SLOTS]
                waiting.append(slot)
                self._start(slot, batch)
                if len(waiting) == SLOTS:
                    yield self._finish(waiting[0], record)
                    waiting.popleft()
            while waiting:
                session.enter()
                yield self._finish(waiting[0], record)
                waiting.popleft()
        finally:
            # An error, or a caller that wants no more: the buffers must not be in use when others take them.
            if waiting:
                session.drain()
            if session.is_open:
                self._free_slots.append(slots)

    def _start(self, slot: Slot, batch: Array) -> None:
        cuda, events, compute, copies = self._session.cuda, slot.events, self._session.compute, self._session.copies
        np.copyto(slot.host_input, batch, casting="same_kind")
        cuda.record(events["upload"], copies)
        cuda.upload(slot.input_address, slot.host_input, copies)
        cuda.record(events["uploaded"], copies)
        cuda.wait(compute, events["uploaded"])
        cuda.record(events["start"], compute)
        addresses = [slot.input_address, *self._between, slot.output_address]
        for stage, (input_address, output_address) in zip(self._stages, pairwise(addresses), strict=True):
            stage.run(input_address, output_address)
            cuda.record(events[stage.name], compute)

    def _finish(self, slot: Slot, record: Callable[[str, float], None]) -> Array:
        cuda, events, copies = self._session.cuda, slot.events, self._session.copies
        names = [stage.name for stage in self._stages]
        cuda.wait(copies, events[names[-1]])
        cuda.record(events["download"], copies)
        cuda.download(slot.host_output, slot.output_address, copies)
        cuda.record(events["downloaded"], copies)
        cuda.synchronize_event(events["downloaded"])
        for start, end in pairwise(["start", *names]):
            record(end, cuda.elapsed_ms(events[start], events[end]))
        for start, end in (("upload", "uploaded"), ("download", "downloaded")):
            record("transfers", cuda.elapsed_ms(events[start], events[end]))
        # A copy: the tile after the next one comes into the same memory.
        return slot.host_output.copy()
