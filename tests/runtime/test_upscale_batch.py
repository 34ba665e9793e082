"""The tile that fits, and what happens when the prediction was wrong."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from intsr.runtime.backends.protocol import Backend
from intsr.runtime.batch import files as batch_files
from intsr.runtime.batch.files import with_header
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.batch.run import Batch
from intsr.runtime.upscaler import Upscaler
from intsr.types import TensorInfo

MIB = 1 << 20


class Network:
    def __init__(self, tile_px: int, breaks: bool) -> None:
        self.input = self.output = TensorInfo("x", (1, 3, tile_px * 2, tile_px * 2), "float32")
        self.breaks = breaks

    def run(self, x: np.ndarray) -> np.ndarray:
        if self.breaks:
            raise MemoryError
        return x

    def close(self) -> None:
        pass


class FakeEngine(Upscaler):
    """Holds tiles of 64, 32 and 16 pixels. breaks: those whose networks run out of memory."""

    opened: ClassVar[list[int]] = []

    def __init__(self, tile_px: int = 64, breaks: tuple[int, ...] = ()) -> None:
        FakeEngine.opened.append(tile_px)
        self.breaks = breaks
        networks = [Network(tile_px, tile_px in breaks) for _ in range(3)]
        backend = Backend(networks)
        backend.activation_bytes = 3 * tile_px * tile_px * 40_000
        super().__init__(backend, tile_px, 8, 2, resize_filter="bicubic", color_fix="none")  # type: ignore[arg-type]
        # What the test process itself holds is not what is tested.
        self._opened_bytes = 100 * MIB

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        return (64, 32, 16)

    def reopen(self, tile_px: int) -> FakeEngine:
        return FakeEngine(tile_px, self.breaks)


@pytest.fixture
def jobs(tmp_path: Path, photo: np.ndarray) -> list[Job]:
    FakeEngine.opened.clear()
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(photo).save(path)
    return [Job(path, tmp_path / "out" / path.name) for path in paths]


def _reports(engine: Any, jobs: list[Job], memory_bytes: int, auto: bool = True) -> list[Any]:
    batch = Batch(engine, FileOptions(memory_bytes=memory_bytes), auto)
    return list(batch.reports(jobs))


def test_enough_memory_takes_the_engines_tile(jobs: list[Job]) -> None:
    reports = _reports(FakeEngine(), jobs, 4096 * MIB)
    assert [report.tile_px for report in reports] == [64, 64, 64]
    assert FakeEngine.opened == [64] and not any(report.notes for report in reports)


def test_less_memory_takes_a_smaller_one_and_says_so(jobs: list[Job]) -> None:
    # 64 pixels: 100 MiB open, 469 MiB at work; 32 pixels: 117 MiB of it.
    reports = _reports(FakeEngine(), jobs, 300 * MIB)
    assert [report.tile_px for report in reports] == [32, 32, 32]
    assert FakeEngine.opened == [64, 32]
    for report in reports:
        assert report.notes == ("tiles of 32 pixels instead of 64: that is what fits into memory",)
        assert Path(report.output).exists()


def test_too_little_for_any_is_an_error(jobs: list[Job]) -> None:
    reports = _reports(FakeEngine(), jobs, 110 * MIB)
    assert [report.status for report in reports] == ["failed"] * 3
    assert all(report.out_of_memory and "need about" in report.error for report in reports)


def test_what_fits_no_tile_is_not_tried_at_each(jobs: list[Job], photo: np.ndarray) -> None:
    engine = FakeEngine()
    Image.fromarray(np.tile(photo, (30, 30, 1))).save(jobs[1].source)
    FakeEngine.opened.clear()
    reports = _reports(engine, jobs, engine.resident_bytes_at(16) + 60 * MIB)
    assert [report.status for report in reports] == ["ok", "failed", "ok"]
    assert [Path(report.input).name for report in reports] == ["0.png", "1.png", "2.png"]
    assert "need about" in reports[1].error
    assert FakeEngine.opened == [16, 64, 16]


def test_tiles_that_the_overlap_does_not_fit_into_are_no_choice(jobs: list[Job]) -> None:
    batch = Batch(FakeEngine(), FileOptions(overlap_px=20, memory_bytes=300 * MIB), True)  # type: ignore[arg-type]
    assert [report.tile_px for report in batch.reports(jobs)] == [32, 32, 32]
    batch = Batch(FakeEngine(), FileOptions(overlap_px=40, memory_bytes=300 * MIB), True)  # type: ignore[arg-type]
    (report, *_) = batch.reports(jobs)
    assert report.out_of_memory and report.error and "need about" in report.error


def test_a_tile_that_was_asked_for_is_never_changed(jobs: list[Job]) -> None:
    reports = _reports(FakeEngine(), jobs, 300 * MIB, auto=False)
    assert [report.status for report in reports] == ["failed"] * 3
    assert FakeEngine.opened == [64]
    assert "give --tile 32" in reports[0].error


def test_running_out_where_it_should_have_fitted(jobs: list[Job]) -> None:
    reports = _reports(FakeEngine(breaks=(64, 32)), jobs[:1], 4096 * MIB)
    assert [(report.status, report.tile_px) for report in reports] == [("ok", 16)]
    assert FakeEngine.opened == [64, 32, 16]
    (explicit,) = _reports(FakeEngine(breaks=(64,)), jobs[1:2], 4096 * MIB, auto=False)
    assert explicit.out_of_memory and "out of memory" in explicit.error


def test_each_picture_gets_its_own(jobs: list[Job], photo: np.ndarray) -> None:
    """A choice that does not depend on the pictures before it, so that a resumed batch gives the same files."""
    Image.fromarray(np.tile(photo, (8, 14, 1))).save(jobs[1].source)
    engine = FakeEngine()
    small = MemoryBudget(engine, FileOptions()).picture_bytes(with_header(jobs[0]))  # type: ignore[arg-type]
    FakeEngine.opened.clear()
    reports = _reports(engine, jobs, engine.resident_bytes_at(64) + small + MIB)
    assert [report.tile_px for report in reports] == [64, 32, 64]


def test_unreadable_pictures_stay_with_the_others(jobs: list[Job]) -> None:
    jobs[1].source.write_bytes(b"no picture")
    reports = _reports(FakeEngine(), jobs, 4096 * MIB)
    assert [report.status for report in reports] == ["ok", "failed", "ok"]


def _most_at_once(
    engine: FakeEngine, jobs: list[Job], memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How many pictures were held when each was read."""
    held: list[weakref.ref[np.ndarray]] = []
    counts: list[int] = []
    read = batch_files.read_image

    def counted(*arguments: Any) -> Any:
        counts.append(sum(one() is not None for one in held))
        loaded = read(*arguments)
        held.append(weakref.ref(loaded.pixels))
        return loaded

    monkeypatch.setattr(batch_files, "read_image", counted)
    reports = _reports(engine, jobs, memory_bytes, auto=False)
    assert [report.status for report in reports] == ["ok"] * len(jobs)
    return counts


def test_the_limit_is_for_all_pictures_of_a_batch(
    jobs: list[Job], photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(16)
    for job in jobs:
        Image.fromarray(np.tile(photo, (3, 3, 1))).save(job.source)
    one = MemoryBudget(engine, FileOptions()).picture_bytes(with_header(jobs[0]))  # type: ignore[arg-type]
    alone = engine.resident_bytes_at(16) + one
    assert _most_at_once(engine, jobs, alone + MIB // 2, monkeypatch) == [0, 0, 0]
