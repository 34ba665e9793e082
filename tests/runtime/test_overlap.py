"""Reading, computing and finishing beside one another: order, isolation, bounds, and an end that leaves no thread."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import count

import pytest

from intsr.runtime.tiles.overlap import AbandonedError, Handoff, overlapped


def _same(job: int) -> int:
    return job


def _count(prepared: int) -> Generator[int]:
    yield from range(prepared)


def _total(prepared: int, items: Iterable[int]) -> int:
    return sum(items)


@pytest.mark.parametrize("jobs", [[], [3, 0, 5, 1]])
def test_results_come_in_order(jobs: list[int]) -> None:
    made = list(overlapped(jobs, _same, _count, _total))
    assert made == [(job, sum(range(job))) for job in jobs]


@pytest.mark.parametrize("stage", ["prepare", "compute", "finish"])
def test_an_error_is_its_own_jobs_result(stage: str) -> None:
    def fail_in(now: str, job: int) -> None:
        if (now, job) == (stage, 2):
            raise ValueError(now)

    def prepare(job: int) -> int:
        fail_in("prepare", job)
        return job

    def compute(job: int) -> Generator[int]:
        yield 10
        fail_in("compute", job)
        yield 20

    def finish(job: int, items: Iterable[int]) -> int:
        first = next(iter(items))
        fail_in("finish", job)
        return first + sum(items)

    results = dict(overlapped([1, 2, 3], prepare, compute, finish))
    assert (results[1], results[3]) == (30, 30)
    assert isinstance(results[2], ValueError) and str(results[2]) == stage


def test_what_finishes_never_takes_a_part_for_the_whole() -> None:
    seen: list[BaseException] = []

    def compute(job: int) -> Generator[int]:
        yield 1
        raise ValueError

    def finish(job: int, items: Iterable[int]) -> int:
        try:
            return sum(items)
        except BaseException as error:
            seen.append(error)
            raise

    ((_, result),) = overlapped([1], _same, compute, finish)
    assert isinstance(result, ValueError)
    assert [type(error) for error in seen] == [AbandonedError]


def test_the_three_run_beside_one_another() -> None:
    """Each waits for another job's other stage: one after the other, nothing would ever go on."""
    read_second, computed_second = threading.Event(), threading.Event()

    def prepare(job: int) -> int:
        if job == 1:
            read_second.set()
        return job

    def compute(job: int) -> Generator[int]:
        if job == 0:
            assert read_second.wait(10), "the second is read while the first is computed"
        yield job
        if job == 1:
            computed_second.set()

    def finish(job: int, items: Iterable[int]) -> int:
        total = sum(items)
        if job == 0:
            assert computed_second.wait(10), "the second is computed while the first is finished"
        return total

    assert list(overlapped([0, 1], prepare, compute, finish)) == [(0, 0), (1, 1)]


def test_what_is_under_way_is_told() -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    def may_overlap(job: int, under_way: Sequence[int]) -> bool:
        asked.append((job, tuple(under_way)))
        return True

    list(overlapped([0, 1, 2, 3], _same, _count, _total, may_overlap))
    assert asked == [(1, (0,)), (2, (0, 1)), (3, (1, 2))]


def test_a_job_without_room_waits_for_the_ones_before() -> None:
    # And of those nothing is left by then.
    held: list[weakref.ref[Held]] = []
    finished: list[int] = []
    second_is_read = threading.Event()

    class Held:
        def __init__(self, job: int) -> None:
            self.job = job

    def prepare(job: int) -> Held:
        second_is_read.set() if job else None
        assert [one() for one in held] == [None] * job and finished == list(range(job))
        made = Held(job)
        held.append(weakref.ref(made))
        return made

    def compute(prepared: Held) -> Generator[int]:
        yield prepared.job

    def finish(prepared: Held, items: Iterable[int]) -> int:
        total = sum(items)
        # Time enough for a reader that does not wait; one that does lets it pass.
        second_is_read.wait(0.2)
        finished.append(prepared.job)
        return total

    made = overlapped([0, 1, 2], prepare, compute, finish, lambda job, under_way: False)
    assert list(made) == [(0, 0), (1, 1), (2, 2)]


def test_a_slow_taker_holds_the_giver_up() -> None:
    made, taken, ahead = list[int](), list[int](), list[int]()

    def compute(job: int) -> Generator[int]:
        for item in range(20):
            made.append(item)
            ahead.append(len(made) - len(taken))
            yield item

    def finish(job: int, items: Iterable[int]) -> int:
        for item in items:
            time.sleep(0.002)
            taken.append(item)
        return len(taken)

    assert list(overlapped([1], _same, compute, finish)) == [(1, 20)]
    assert max(ahead) <= 3, "one being made, one waiting, one being taken"


def test_a_taker_that_leaves_lets_the_giver_go() -> None:
    handoff: Handoff[int] = Handoff()
    assert handoff.put(1)
    handoff.leave()
    assert not handoff.put(2)


def test_ctrl_c_ends_every_thread() -> None:
    before = threading.active_count()
    closed: list[int] = []

    def compute(job: int) -> Generator[int]:
        try:
            yield 1
            raise KeyboardInterrupt
        finally:
            closed.append(job)

    with pytest.raises(KeyboardInterrupt):
        list(overlapped([1, 2, 3], _same, compute, _total))
    assert closed == [1]
    assert threading.active_count() == before


def test_jobs_may_have_no_end_and_are_taken_one_ahead() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for job in count():
            taken.append(job)
            yield job

    made = overlapped(endless(), _same, _count, _total)
    assert [next(made) for _ in range(3)] == [(0, 0), (1, 0), (2, 1)]
    assert taken == [0, 1, 2, 3, 4]
    made.close()  # type: ignore[attr-defined]
