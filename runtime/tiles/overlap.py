"""Three things at once: the next item is read, this one computed, the one before it finished.

Reading and finishing (colours, encoding) have a thread each; computing stays in the caller's. What is handed from one
to the other is bounded, so that a slow disk holds the computing up instead of filling the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

J = TypeVar("J")
P = TypeVar("P")
B = TypeVar("B")
R = TypeVar("R")

_HELD = 1
_POLL_S = 0.1


class AbandonedError(Exception):
    """Raised in the finishing thread: no more will come, as computing has failed."""


class Handoff(Generic[B]):
    """Items from one thread to another, in order, `_HELD` at a time.

    Of queues that are written in C and hold no lock of Python's: Ctrl-C may come at any line of the giver's.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[tuple[B] | bool] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._left = False
        for _ in range(_HELD):
            self._room.put(None)

    def put(self, item: B) -> bool:
        """Wait for room, and give an item. False where the taker wants no more."""
        while not self._left:
            try:
                self._room.get(timeout=_POLL_S)
            except Empty:
                continue
            self._items.put((item,))
            return True
        return False

    def end(self, failed: bool = False) -> None:
        """Tell the taker that no more will come. failed: it must not take what it has for the whole."""
        self._items.put(failed)

    def leave(self) -> None:
        """Tell the giver that the taker wants no more."""
        self._left = True

    def __iter__(self) -> Iterator[B]:
        while True:
            taken = self._items.get()
            if taken is True:
                raise AbandonedError
            if taken is False:
                return
            self._room.put(None)
            yield taken[0]
            # Held no longer than the taker needs it.
            del taken


def overlapped(
    jobs: Iterable[J],
    prepare: Callable[[J], P],
    compute: Callable[[P], Generator[B]],
    finish: Callable[[P, Iterable[B]], R],
    may_overlap: Callable[[J, Sequence[J]], bool] = lambda job, under_way: True,
) -> Generator[tuple[J, R | Exception]]:
    """Yield each job, in order, with what `finish` returned or the exception that ended it.

        prepare   1 2 3 4
        compute     1 2 3 4
        finish        1 2 3 4

    jobs: taken one ahead, so that they may come from an iterator without end. prepare: in the reading thread.
    compute: in the caller's. finish: in the finishing thread, with what `compute` yields. may_overlap: whether a job
    may be prepared while those of `under_way` are computed and finished; else it is when they have ended, and nothing
    of them is held any more. Only exceptions that are not `Exception` (Ctrl-C) and those of `jobs` end the whole;
    then every thread has ended when they come out.
    """
    iterator = iter(jobs)
    # The job that comes next, and what prepares it already.
    held: deque[tuple[J, Future[P] | None]] = deque()
    finishing: deque[tuple[J, Future[R] | Exception]] = deque()
    with ThreadPoolExecutor(1, "intsr-read") as reader, ThreadPoolExecutor(1, "intsr-finish") as finisher:

        def hold_one(under_way: Sequence[J]) -> None:
            for job in islice(iterator, 1):
                begins = not under_way or may_overlap(job, under_way)
                held.append((job, reader.submit(prepare, job) if begins else None))

        def computed(coming: Future[P]) -> Future[R] | Exception:
            try:
                return _handed_over(coming.result(), compute, finish, finisher)
            except Exception as error:
                return error

        hold_one(())
        while held:
            job, coming = held.popleft()
            if coming is None:
                yield from _ended(finishing)
                coming = reader.submit(prepare, job)
            hold_one([*(other for other, _ in finishing), job])
            finishing.append((job, computed(coming)))
            # It holds what was prepared, longer than the finishing does.
            del coming
            # What is being finished goes on beside the next; what was before it is done or waited for.
            yield from _ended(finishing, most=1)
        yield from _ended(finishing)


class EndError(Exception):
    """There are no more items, or none may follow one that failed."""


def in_sequence(
    prepare: Callable[[], P], compute: Callable[[P], Generator[B]], finish: Callable[[P, Iterable[B]], R]
) -> Generator[R]:
    """As `overlapped`, of items that build on each other: behind one that failed none is prepared or finished, though
    the next is on its way by then. prepare: raises EndError where there are no more. Raises what the first failed by.
    """
    failed = {"prepare": False, "finish": False}

    @contextmanager
    def unless_failed(step: str) -> Iterator[None]:
        if failed[step]:
            raise EndError
        failed[step] = True
        yield
        failed[step] = False

    def prepare_next(_: int) -> P:
        with unless_failed("prepare"):
            return prepare()

    def finish_next(prepared: P, items: Iterable[B]) -> R:
        # Computing that fails comes out of the items.
        with unless_failed("finish"):
            return finish(prepared, items)

    with closing(overlapped(count(), prepare_next, compute, finish_next)) as made:
        for _, result in made:
            if isinstance(result, EndError):
                return
            if isinstance(result, Exception):
                raise result
            yield result


def _handed_over(
    prepared: P,
    compute: Callable[[P], Generator[B]],
    finish: Callable[[P, Iterable[B]], R],
    finisher: ThreadPoolExecutor,
) -> Future[R]:
    handoff: Handoff[B] = Handoff()

    def finish_or_leave() -> R:
        try:
            return finish(prepared, handoff)
        finally:
            handoff.leave()

    failed = True
    try:
        future = finisher.submit(finish_or_leave)
        with closing(compute(prepared)) as items:
            for item in items:
                if not handoff.put(item):
                    break
        failed = False
    finally:
        # Ctrl-C may come here too, and the taker waits for this word.
        try:
            handoff.end(failed)
        except BaseException:
            handoff.end(failed=True)
            raise
    return future


def _ended(finishing: deque[tuple[J, Future[R] | Exception]], most: int = 0) -> Iterator[tuple[J, R | Exception]]:
    """Wait for those that are being finished, one after the other, until so many are left."""
    while len(finishing) > most:
        job, result = finishing.popleft()
        outcome = _outcome(result)
        # Nothing of it is held while the caller looks at what came of it.
        del result
        yield job, outcome


def _outcome(result: Future[R] | Exception) -> R | Exception:
    if isinstance(result, Exception):
        return result
    try:
        return result.result()
    except Exception as error:
        return error
