"""When work becomes a graph, and what happens when a capture fails."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from intsr.cuda.driver import open_cuda
from intsr.cuda.graphs import MAX_GRAPHS, MAX_SEEN, GraphCache

# The CUDA sources, run on the CPU: `make test-slow`.
pytestmark = pytest.mark.kernels


class Work:
    """A graph cache on the simulated GPU; `run(key)` says what the GPU did for it."""

    def __init__(self, machine: Any) -> None:
        self.gpu, self.cuda = machine.gpu, open_cuda("cuda-python", None, "e.engine", "gpu")
        self.stream = self.cuda.create_stream()
        self.cache = GraphCache(self.cuda, "unet")

    def enqueue(self, stream: Any) -> None:
        self.gpu.put(stream, "kernel", lambda: None)

    def run(self, key: object) -> list[str]:
        self.gpu.log.clear()
        self.cache.run(key, self.enqueue, self.stream)
        self.cuda.synchronize(self.stream)
        return list(self.gpu.log)


@pytest.fixture
def work(machine: Any) -> Iterator[Work]:
    work = Work(machine)
    yield work
    work.cache.close()
    work.cuda.destroy_stream(work.stream)
    assert machine.gpu.leftovers() == {} and not machine.gpu.capturing


def test_a_key_runs_twice_before_its_graph_does(work: Work) -> None:
    assert [work.run("a") for _ in range(4)] == [["kernel"], ["kernel"], ["graph kernel"], ["graph kernel"]]
    assert work.gpu.calls["cuStreamBeginCapture"] == 1


def test_keys_that_come_once_cost_nothing_and_are_forgotten(work: Work) -> None:
    for key in range(MAX_SEEN + 1):
        assert work.run(key) == ["kernel"]
    # As if it had never been there; the last one has.
    work.run(0)
    assert work.gpu.calls["cuStreamBeginCapture"] == work.gpu.calls["cuStreamSynchronize"] - MAX_SEEN - 2 == 0
    work.run(MAX_SEEN)
    assert work.gpu.calls["cuStreamBeginCapture"] == 1


def test_a_graph_that_had_to_go_is_made_again_as_any_new_one(work: Work) -> None:
    for key in range(MAX_GRAPHS + 1):
        work.run(key), work.run(key)
    captures = work.gpu.calls["cuStreamBeginCapture"]
    assert work.run(0) == ["kernel"] and work.gpu.calls["cuStreamBeginCapture"] == captures
    assert work.run(0) == ["kernel"] and work.gpu.calls["cuStreamBeginCapture"] == captures + 1


def test_one_failed_capture_is_tried_again_on_a_later_run_without_a_word(work: Work) -> None:
    work.run("a")
    work.gpu.fail["cuStreamBeginCapture"] = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert work.run("a") == ["kernel"]
    work.gpu.fail.clear()
    assert work.cache.active
    assert [work.run("a"), work.run("a")] == [["kernel"], ["graph kernel"]]


def test_the_second_failure_turns_graphs_off_and_says_so_once(work: Work) -> None:
    work.gpu.fail["cuStreamBeginCapture"] = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    for key in ("a", "b", "a"):
        assert work.run(key) == ["kernel"]
    with pytest.warns(RuntimeWarning, match=r"unet runs without a CUDA graph.*CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        assert work.run("b") == ["kernel"]
    assert not work.cache.active
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert work.run("b") == ["kernel"]
    assert work.gpu.calls["cuStreamBeginCapture"] == 2


def _litter(work: Work) -> None:
    """Garbage that only a collection finds, and whose finalizer gives device memory back."""

    class Tensor:
        def __init__(self, address: int) -> None:
            self.address, self.itself = address, self

        def __del__(self) -> None:
            (status,) = work.cuda._driver.cuMemFree(self.address)  # type: ignore[attr-defined]
            work.gpu.calls[f"free {status.name}"] += 1

    Tensor(work.cuda.alloc(16))


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_in_a_capture(work: Work, enabled: bool) -> None:
    threshold, was_enabled = gc.get_threshold(), gc.isenabled()
    enqueue, freed = work.enqueue, list[int]()

    def enqueue_with_litter(stream: Any) -> None:
        if stream in work.gpu.capturing:
            freed.append(work.gpu.calls["free CUDA_SUCCESS"])
            _litter(work)
            # Containers, so that the collector has its turn.
            assert len([[] for _ in range(1000)]) == 1000
        enqueue(stream)

    work.enqueue = enqueue_with_litter  # type: ignore[method-assign]
    try:
        gc.set_threshold(1, 1, 1)
        (gc.enable if enabled else gc.disable)()
        work.run("a")
        # What is litter already goes before the capture begins.
        _litter(work)
        assert work.run("a") == ["kernel"]
        assert freed == [1] and gc.isenabled() is enabled
        assert work.run("a") == ["graph kernel"]
    finally:
        gc.set_threshold(*threshold)
        (gc.enable if was_enabled else gc.disable)()
    gc.collect()
    answers = {name: count for name, count in work.gpu.calls.items() if name.startswith("free ")}
    assert answers == {"free CUDA_SUCCESS": 2}


def test_the_simulated_capture_does_end_at_a_free(work: Work) -> None:
    # Else the test above could not fail.
    address = work.cuda.alloc(16)
    enqueue = work.enqueue

    def free(stream: Any) -> None:
        enqueue(stream)
        if stream in work.gpu.capturing:
            work.cuda._driver.cuMemFree(address)  # type: ignore[attr-defined]

    work.enqueue = free  # type: ignore[method-assign]
    assert [work.run("a") for _ in range(2)] == [["kernel"]] * 2
    work.enqueue = enqueue  # type: ignore[method-assign]
    assert [work.run("a") for _ in range(2)] == [["kernel"], ["graph kernel"]]
    work.cuda.free(address)
