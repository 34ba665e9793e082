"""Many tasks through one engine: read, computed and finished beside one another, their tiles together in its runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from intsr.arrays import Array
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.serve.tasks import Prepared, Task
from intsr.runtime.tiles.blend import Band, FinishedBand, SharedRuns
from intsr.runtime.tiles.overlap import overlapped
from intsr.runtime.tiles.stage_clock import StageClock
from intsr.runtime.upscaler import Upscaler, Work

Bands: TypeAlias = Generator[Band | FinishedBand]


def answers(upscaler: Upscaler, tasks: Sequence[Task], memory_bytes: int | None) -> Iterator[Array | Exception]:
    """Yield each task's result, or what is wrong with it, in order. memory_bytes: for all, None for what is free."""
    budget = MemoryBudget(upscaler, FileOptions(memory_bytes=memory_bytes))
    if upscaler.networks[0].input.shape[0] > 1:
        for group in _fitting(tasks, budget):
            yield from _together(upscaler, group)
        return

    def may_overlap(task: Task, under_way: Sequence[Task]) -> bool:
        return budget.may_overlap(task.job, [other.job for other in under_way])

    for _, result in overlapped(tasks, _prepared, _bands, _finished, may_overlap):
        yield result


def _together(upscaler: Upscaler, tasks: Sequence[Task]) -> Iterator[Array | Exception]:
    """Read all before the first is computed: where that saves runs, their tiles are one stream."""
    with ThreadPoolExecutor(len(tasks), "intsr-read") as readers:
        outcomes = list(readers.map(_prepared_or_error, tasks))
    works = [outcome.work for outcome in outcomes if isinstance(outcome, Prepared)]
    shared = SharedRuns([work.tiled for work in works], lambda inputs: upscaler.run_tiles(inputs, StageClock()))

    def shared_bands(prepared: Prepared) -> Bands:
        with upscaler.turn():
            yield from shared.bands()

    compute = shared_bands if _saves_runs(works, upscaler.networks[0].input.shape[0]) else _bands
    for _, result in overlapped(outcomes, _or_raised, compute, _finished):
        yield result


def _saves_runs(works: Sequence[Work], batch: int) -> bool:
    return sum(-(-work.tiles // batch) for work in works) > -(-sum(work.tiles for work in works) // batch)


def _fitting(tasks: Sequence[Task], budget: MemoryBudget) -> Iterator[Sequence[Task]]:
    """Yield neighbours that may be in memory at once, as many as possible."""
    group: list[Task] = []
    for task in tasks:
        if group and not budget.fits([other.job for other in (*group, task)]):
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def _prepared(task: Task) -> Prepared:
    return task.prepare()


def _prepared_or_error(task: Task) -> Prepared | Exception:
    try:
        return task.prepare()
    except Exception as error:
        return error


def _or_raised(outcome: Prepared | Exception) -> Prepared:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _bands(prepared: Prepared) -> Bands:
    return prepared.work.bands()


def _finished(prepared: Prepared, bands: Iterable[Band | FinishedBand]) -> Array:
    return prepared.finish(bands)
