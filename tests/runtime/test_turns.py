"""One engine, several threads: the bits of one thread, whoever takes his time, waits or closes it meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from networks import upscaler_of

from intsr.errors import UsageError
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.upscaler import Upscaler

TIMEOUT_S = 120
# Their engines take float32: pictures go through host memory, tile by tile.
pytestmark = pytest.mark.filterwarnings("ignore:.* blends its pictures on the CPU:RuntimeWarning")


def _shared_buffers() -> Upscaler:
    """Of networks that keep what they are at in one buffer, as engines do, and take their time."""
    upscaler = upscaler_of()
    for network in upscaler.networks:
        buffer = np.zeros(network.input.shape, np.float32)

        def run(x: np.ndarray, buffer: np.ndarray = buffer) -> np.ndarray:
            buffer[:] = x
            time.sleep(0.001)
            assert not upscaler._closed, "closed in the middle of a run"
            return buffer.copy()

        network.function = run
    return upscaler


KINDS = ["shared buffers", "onnxruntime", "cpu", pytest.param("simulated GPU", marks=pytest.mark.slow)]


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Path]) -> Iterator[Upscaler]:
    if request.param == "shared buffers":
        opened: Upscaler = _shared_buffers()
    elif request.param == "simulated GPU":
        opened = open_engine(request.getfixturevalue("machine").engine())
    else:
        opened = open_engine(make_engine(request.param), threads=2 if request.param == "cpu" else 1)
    with opened:
        yield opened


@pytest.fixture
def pictures(photo: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.roll(photo, 9 * index, 1)[: 37 - 3 * index, :40]) for index in range(4)]


def _from_rows(engine: Upscaler, picture: np.ndarray) -> np.ndarray:
    parts = []
    for rows in engine.upscale_rows(picture):
        parts.append(rows)
        time.sleep(0.002)
    return np.concatenate(parts)


def _from_many(engine: Upscaler, picture: np.ndarray) -> np.ndarray:
    first, second = engine.upscale_many([picture, picture])
    np.testing.assert_array_equal(first, second)
    return np.asarray(first)


WAYS: tuple[Callable[[Upscaler, np.ndarray], object], ...] = (Upscaler.upscale, _from_rows, _from_many)


def test_threads_get_the_pixels_of_one_thread(engine: Upscaler, pictures: list[np.ndarray]) -> None:
    expected = [engine.upscale(picture) for picture in pictures]
    calls = [(way, index) for way in WAYS for index in range(len(pictures))] * 2
    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda call: call[0](engine, pictures[call[1]]), calls, timeout=TIMEOUT_S))
    for (_, index), result in zip(calls, made, strict=True):
        np.testing.assert_array_equal(result, expected[index])


def test_asyncio(engine: Upscaler, pictures: list[np.ndarray]) -> None:
    # Rows are asked for one by one, each time by another thread.
    expected = [engine.upscale(picture) for picture in pictures]

    async def rows_of(picture: np.ndarray) -> np.ndarray:
        rows, parts = engine.upscale_rows(picture), []
        while (part := await asyncio.to_thread(next, rows, None)) is not None:
            parts.append(part)
        return np.concatenate(parts)

    async def serve() -> list[np.ndarray]:
        whole = [asyncio.to_thread(engine.upscale, picture) for picture in pictures]
        by_rows = [rows_of(picture) for picture in pictures]
        return await asyncio.wait_for(asyncio.gather(*whole, *by_rows), TIMEOUT_S)

    for made, result in zip(asyncio.run(serve()), expected * 2, strict=True):
        np.testing.assert_array_equal(made, result)


def test_who_takes_his_time_keeps_nobody_waiting(engine: Upscaler, pictures: list[np.ndarray]) -> None:
    # Neither in another thread nor in his own, and both get what is theirs.
    expected = [engine.upscale(picture) for picture in pictures[:3]]
    rows, many = engine.upscale_rows(pictures[0]), engine.upscale_many([pictures[1]] * 3)
    begun = [next(rows)], [next(many)]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(engine.upscale, pictures[2]).result(TIMEOUT_S)
    np.testing.assert_array_equal(other, expected[2])
    np.testing.assert_array_equal(engine.upscale(pictures[2]), expected[2])
    np.testing.assert_array_equal(np.concatenate([*begun[0], *rows]), expected[0])
    for result in (*begun[1], *many):
        np.testing.assert_array_equal(result, expected[1])


def test_frames_that_the_same_engine_makes(engine: Upscaler, pictures: list[np.ndarray]) -> None:
    # The iterator of `upscale_many` may use the engine itself, and wait for a thread that does.
    small = pictures[0][:12, :12]
    with ThreadPoolExecutor(1) as pool:

        def frames() -> Iterator[np.ndarray]:
            for _ in range(3):
                yield np.asarray(engine.upscale(small))
                yield np.asarray(pool.submit(engine.upscale, small).result(TIMEOUT_S))

        made = list(engine.upscale_many(frames()))
    expected = engine.upscale(engine.upscale(small))
    assert len(made) == 6
    for result in made:
        np.testing.assert_array_equal(result, expected)


def test_closing_waits_for_a_turn_and_ends_what_is_between_two(engine: Upscaler, pictures: list[np.ndarray]) -> None:
    expected = engine.upscale(pictures[0])
    rows = engine.upscale_rows(pictures[0])
    next(rows)
    started = threading.Semaphore(0)

    def call_until_closed() -> str:
        while True:
            started.release()
            try:
                np.testing.assert_array_equal(engine.upscale(pictures[0]), expected)
            except UsageError as error:
                return str(error)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call_until_closed) for _ in range(4)]
        for _ in range(6):
            assert started.acquire(timeout=TIMEOUT_S)
        engine.close()
        said = {call.result(TIMEOUT_S) for call in calls}
    place = engine.path if isinstance(engine, Engine) else "engine"
    assert said == {f"{place}: the engine is closed; open it again"}
    for use in (
        lambda: next(rows),
        lambda: engine.upscale(pictures[0]),
        lambda: next(engine.upscale_rows(pictures[0])),
        lambda: next(iter(engine.upscale_many(pictures))),
        lambda: engine.run_pipeline(np.zeros(engine.networks[0].input.shape, np.float32)),
    ):
        with pytest.raises(UsageError, match="is closed; open it again"):
            use()
    engine.close()


def test_reopening_ends_what_others_are_at(any_engine: Path, pictures: list[np.ndarray]) -> None:
    engine = open_engine(any_engine, threads=1)
    expected, rows = engine.upscale(pictures[0]), engine.upscale_rows(pictures[0])
    next(rows)
    engine.close()
    with ThreadPoolExecutor(1) as pool, pool.submit(engine.reopen, engine.tile_px).result(TIMEOUT_S) as again:
        np.testing.assert_array_equal(again.upscale(pictures[0]), expected)
        for use in (lambda: next(rows), lambda: engine.network("unet").run(np.zeros((1, 12, 16, 16), np.float32))):
            with pytest.raises(UsageError, match="is closed; open it again"):
                use()


def test_different_engines_do_not_wait_for_each_other(pictures: list[np.ndarray]) -> None:
    # Each is in its network when the other is: a turn that both took would never let them meet.
    meeting = threading.Barrier(2, timeout=TIMEOUT_S)

    def meet(x: np.ndarray) -> np.ndarray:
        meeting.wait()
        return x

    engines = [upscaler_of(meet) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda engine: engine.upscale(pictures[0]), engines, timeout=TIMEOUT_S))
    np.testing.assert_array_equal(made[0], made[1])


def test_openvino_runs_in_no_thread_of_the_callers(make_engine: Callable[..., Path], photo: np.ndarray) -> None:
    # `infer` would: OpenVINO crashes when such a thread ends while the model is closed, once in some 100 times.
    with open_engine(make_engine("cpu"), threads=2) as engine:
        for network in engine.networks:
            request = network._request  # type: ignore[attr-defined]
            allowed = {name: getattr(request, name) for name in ("start_async", "wait", "get_output_tensor")}
            network._request = SimpleNamespace(**allowed)  # type: ignore[attr-defined]
        assert engine.upscale(photo).shape == (106, 142, 3)


def test_a_network_by_itself(make_engine: Callable[..., Path]) -> None:
    with open_engine(make_engine("cpu"), threads=1) as engine:
        unet = engine.network("unet")
        inputs = [np.full(unet.input.shape, index, np.float32) for index in range(300)]
        with ThreadPoolExecutor(8) as pool:
            for index, output in enumerate(pool.map(unet.run, inputs, timeout=TIMEOUT_S)):
                np.testing.assert_allclose(output, index)
