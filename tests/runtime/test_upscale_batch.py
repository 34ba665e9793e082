"""The tile that fits, and what happens when the prediction was wrong."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from networks import FunctionNetwork, identity
from PIL import Image

from intsr.runtime.backends.protocol import Backend
from intsr.runtime.batch import files as batch_files
from intsr.runtime.batch.files import with_header
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.batch.run import Batch
from intsr.runtime.upscaler import Upscaler

MIB = 1 << 20


def _break(x: np.ndarray) -> np.ndarray:
    raise MemoryError


class FakeEngine(Upscaler):
    """Holds tiles of 64, 32 and 16 pixels. breaks: those whose networks run out of memory."""

    opened: ClassVar[list[int]] = []

    def __init__(self, tile_px: int = 64, breaks: tuple[int, ...] = ()) -> None:
        FakeEngine.opened.append(tile_px)
        self.breaks = breaks
        backend = Backend([FunctionNetwork(_break if tile_px in breaks else identity, 2 * tile_px)] * 3)
        backend.activation_bytes = 3 * tile_px * tile_px * 40_000
        super().__init__(backend, tile_px, 8, 2, resize_filter="bicubic", color_fix="none")
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


def _reports(engine: Any, jobs: list[Job], memory_bytes: int, auto: bool = True, **options: Any) -> list[Any]:
    return list(Batch(engine, FileOptions(memory_bytes=memory_bytes, **options), auto).reports(jobs))


def test_enough_memory_takes_the_engines_tile_and_unreadable_pictures_stay_with_the_others(jobs: list[Job]) -> None:
    jobs[1].source.write_bytes(b"no picture")
    reports = _reports(FakeEngine(), jobs, 4096 * MIB)
    assert [(report.status, report.tile_px) for report in reports] == [("ok", 64), ("failed", None), ("ok", 64)]
    assert FakeEngine.opened == [64] and not any(report.notes for report in reports)


def test_less_memory_takes_a_smaller_one_and_says_so(jobs: list[Job]) -> None:
    # 64 pixels: 100 MiB open, 469 MiB at work; 32 pixels: 117 MiB of it.
    reports = _reports(FakeEngine(), jobs, 300 * MIB)
    assert [report.tile_px for report in reports] == [32, 32, 32]
    assert FakeEngine.opened == [64, 32]
    for report in reports:
        assert report.notes == ("tiles of 32 pixels instead of 64: that is what fits into memory",)
        assert Path(report.output).exists()


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
    reports = _reports(FakeEngine(), jobs, 300 * MIB, overlap_px=20)
    assert [report.tile_px for report in reports] == [32, 32, 32]
    reports = _reports(FakeEngine(), jobs, 300 * MIB, overlap_px=40)
    assert all(report.out_of_memory and "need about" in report.error for report in reports)


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
    # A choice that does not depend on the pictures before it, so that a resumed batch gives the same files.
    Image.fromarray(np.tile(photo, (8, 14, 1))).save(jobs[1].source)
    engine = FakeEngine()
    small = MemoryBudget(engine, FileOptions()).picture_bytes(with_header(jobs[0]))  # type: ignore[arg-type]
    FakeEngine.opened.clear()
    reports = _reports(engine, jobs, engine.resident_bytes_at(64) + small + MIB)
    assert [report.tile_px for report in reports] == [64, 32, 64]


def test_the_limit_is_for_all_pictures_of_a_batch(
    jobs: list[Job], photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[np.ndarray]] = []
    read = batch_files.read_image

    def read_alone(*arguments: Any) -> Any:
        assert not any(pixels() is not None for pixels in held)
        loaded = read(*arguments)
        held.append(weakref.ref(loaded.pixels))
        return loaded

    monkeypatch.setattr(batch_files, "read_image", read_alone)
    engine = FakeEngine(16)
    for job in jobs:
        Image.fromarray(np.tile(photo, (3, 3, 1))).save(job.source)
    one = MemoryBudget(engine, FileOptions()).picture_bytes(with_header(jobs[0]))
    reports = _reports(engine, jobs, engine.resident_bytes_at(16) + one + MIB // 2, auto=False)
    assert [report.status for report in reports] == ["ok"] * 3 and len(held) == 3
