"""Wall time by stage of an upscaled picture."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from intsr.types import NETWORKS, VIDEO_NETWORKS

T = TypeVar("T")

STAGES = ("resize", *NETWORKS, "blend", "color_fix")
# Of a chunk of frames.
VIDEO_STAGES = ("resize", *VIDEO_NETWORKS, "blend", "color_fix")
TRANSFERS = "transfers"


@dataclass(slots=True)
class StageClock:
    """The clock of one picture. Stages may run in several threads, each stage in one."""

    # As those of `UpscaleResult`.
    stages_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    transfers_ms: float | None = None
    on_device: bool = False

    def add(self, name: str, ms: float) -> None:
        """Add what was measured elsewhere: of a stage, or of `transfers`."""
        if name == TRANSFERS:
            self.transfers_ms = (self.transfers_ms or 0.0) + ms
        else:
            self.stages_ms[name] = self.stages_ms.get(name, 0.0) + ms

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(name, (time.perf_counter() - start) * 1e3)

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; making them counts for the stage, what is done with them does not."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
