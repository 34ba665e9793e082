"""How much a picture will take is known before it is decoded, and errs high."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from networks import upscaler_of
from PIL import Image
from video_engines import write_video_engine

from intsr import memory
from intsr.errors import OutOfMemoryError, UsageError
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget, bytes_from_text
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.picture import PictureHeader
from intsr.runtime.upscaler import Upscaler
from intsr.runtime.video.chunks import chunks_of
from intsr.runtime.video.clip import ClipRun


def _upscaler(activation_bytes: int = 0) -> Upscaler:
    upscaler = upscaler_of(tile_px=32, upscale_factor=4, color_fix="wavelet")
    upscaler.backend.activation_bytes = activation_bytes
    return upscaler


def _job(width: int, height: int, bits: int = 8, output: str = "out.png") -> Job:
    size = {"width_px": width, "height_px": height}
    header = PictureHeader(path=Path("in.png"), format="PNG", **size, bits=bits, channels=3, has_alpha=False)
    return Job(header.path, Path(output), header=header)


def _needed(width: int, height: int, bits: int = 8, output: str = "out.png") -> int:
    return MemoryBudget(_upscaler(), FileOptions()).picture_bytes(_job(width, height, bits, output))


def test_only_decoding_grows_with_the_height() -> None:
    low, high = _needed(2000, 2000), _needed(2000, 4000)
    assert high - low == _job(2000, 2000).header.decode_bytes  # type: ignore[union-attr]
    assert _needed(4000, 2000) - low > high - low


def test_formats_that_hold_the_picture_count_it_and_16_bits_take_more() -> None:
    assert _needed(1000, 1000, output="out.webp") - _needed(1000, 1000) > 4000 * 4000 * 3
    assert _needed(1000, 1000, 16) > _needed(1000, 1000) + 4_900_000
    assert _needed(10_000, 10_000) < 3.5e9, "a hundred megapixels fit into four gigabytes"


def test_what_does_not_fit_is_one_line_with_numbers() -> None:
    upscaler, job = _upscaler(), _job(1000, 1000)
    needed = upscaler.resident_bytes_at(32) + _needed(1000, 1000)
    MemoryBudget(upscaler, FileOptions(memory_bytes=needed + 10)).check(job)
    with pytest.raises(OutOfMemoryError) as caught:
        MemoryBudget(upscaler, FileOptions(memory_bytes=needed - 10)).check(job)
    text = str(caught.value)
    assert f"4000x4000 pixels out need about {needed >> 20} MiB" in text
    assert f"expected at most {(needed - 10) >> 20} MiB" in text and "cut the picture into parts" in text
    with pytest.raises(OutOfMemoryError, match="more memory: the engine alone takes"):
        MemoryBudget(upscaler, FileOptions(memory_bytes=1000)).check(job)


def test_small_pictures_overlap_where_all_of_them_fit() -> None:
    upscaler, small, large = _upscaler(), _job(1000, 1000), _job(6000, 4001)
    three = upscaler.resident_bytes_at(32) + 3 * _needed(1000, 1000)
    assert MemoryBudget(upscaler, FileOptions(memory_bytes=three)).may_overlap(small, [small, small])
    assert not MemoryBudget(upscaler, FileOptions(memory_bytes=three - 1)).may_overlap(small, [small, small])
    plenty = MemoryBudget(upscaler, FileOptions(memory_bytes=1 << 40))
    assert plenty.may_overlap(small, [_job(6000, 4000)])
    assert not plenty.may_overlap(small, [large]) and not plenty.may_overlap(large, [small])
    unread = Job(Path("broken.png"), Path("out.png"))
    assert plenty.may_overlap(unread, [small]), "what cannot be read takes nothing"


def test_the_engine_counts_by_the_area_of_its_tile() -> None:
    upscaler = _upscaler(activation_bytes=1 << 30)
    assert upscaler.resident_bytes_at(32) - upscaler.resident_bytes_at(16) == 3 << 28


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of control groups of a machine with 8 GiB free."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
    return tmp_path / "fs"


def _group(folder: Path, limit: object, used_bytes: int, version: int = 2, stat: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, text in zip((*names, "memory.stat"), (limit, used_bytes, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_a_container_has_less_than_its_machine(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.free_bytes() == 8 << 30
    for limit, stat, left in (("max", "", 8 << 30), (2 << 30, "", 1 << 30), (2 << 30, "inactive_file 512", 1 << 30)):
        _group(groups, limit, 1 << 30, stat=f"anon 5\n{stat}")
        assert memory.free_bytes() == left + (512 if stat else 0)
    (groups / "memory.max").unlink()
    # Version 1 writes a number in the place of no limit.
    _group(groups / "memory", 9223372036854771712, 1 << 30, 1)
    assert memory.free_bytes() == 8 << 30
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert memory.free_bytes() is None and MemoryBudget(_upscaler(), FileOptions()).fits([_job(10**6, 10**6)])


def test_the_limit_of_a_group_is_for_those_below_it(groups: Path) -> None:
    # As with systemd's MemoryMax: the mounted root knows nothing of it.
    (groups.parent / "cgroup").write_text("1:name=systemd:/other\n0::/user.slice/a:b.scope\n")
    _group(groups / "user.slice/a:b.scope", "max", 100)
    assert memory.free_bytes() == 8 << 30
    _group(groups / "user.slice", 3 << 20, 1 << 20)
    assert memory.free_bytes() == 2 << 20
    _group(groups / "user.slice/a:b.scope", 1 << 20, 1000)
    assert memory.free_bytes() == (1 << 20) - 1000
    (groups.parent / "cgroup").write_text("0::/../outside\n")
    assert memory.free_bytes() == 8 << 30


def test_version_1_counts_cached_files_of_groups_below(groups: Path) -> None:
    (groups.parent / "cgroup").write_text("4:cpu,memory:/job\n0::/\n")
    _group(groups / "memory/job", 1 << 20, 1 << 19, 1, "inactive_file 10\ntotal_inactive_file 500000")
    assert memory.free_bytes() == (1 << 19) + 500_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 << 30), ("1500m", 1500 << 20), ("2GiB", 2 << 30), ("3.5GB", 3_500_000_000), ("123456", 123456),
     (" 1 K ", 1024), ("7B", 7)],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert bytes_from_text(text) == expected


@pytest.mark.parametrize("text", ["", "G", "x", "-1G", "0", "4X", "1e400G", "nanG", "infM", "0.0001B", "4 G B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        bytes_from_text(text)


def _child(code: str, *arguments: object) -> list[int]:
    """Numbers that the code prints, in a process of its own. argv: an engine, two paths, and what the code takes."""
    imports = """
import sys, pathlib
from intsr.memory import peak_resident_bytes, resident_bytes, restart_peak
from intsr.runtime.batch.files import upscale_file, upscale_files, with_header
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine
engine, source, output = map(pathlib.Path, sys.argv[1:4])
"""
    command = [sys.executable, "-c", imports + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


PREDICTION = """
options = FileOptions(color_fix=sys.argv[4])
with open_engine(engine, threads=1) as opened:
    warm = output.with_name("warm.png")
    upscale_file(opened, Job(warm, warm.with_name("warm-out.png")), options)
    restart_peak()
    before = resident_bytes()
    job = with_header(Job(source, output))
    upscale_file(opened, job, options)
    print(peak_resident_bytes() - before, MemoryBudget(opened, options).picture_bytes(job))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "fix"), [(".png", "wavelet"), (".jpg", "adain"), (".webp", "none")])
def test_predictions_err_high_and_not_by_much(make_engine, tmp_path: Path, suffix: str, fix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"in{suffix}")
    Image.fromarray(noise[:50, :50]).save(tmp_path / "warm.png")
    paths = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    measured, predicted = _child(PREDICTION, make_engine(), *paths, fix)
    assert measured <= predicted <= 6 * measured + (64 << 20), (measured >> 20, predicted >> 20)


MANY = """
jobs = [Job(path, output / f"{i}{path.suffix}") for i, path in enumerate(sorted(source.iterdir()) * 84)]
with open_engine(engine, threads=1) as opened:
    for count, report in enumerate(upscale_files(opened, jobs, FileOptions(color_fix="wavelet")), 1):
        assert report.status == "ok", report
        if count in (len(jobs) // 2, len(jobs)):
            print(resident_bytes())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_500_pictures(make_engine, photo: np.ndarray, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for index, suffix in enumerate((".png", ".jpg", ".webp", ".tif", ".png", ".jpg")):
        Image.fromarray(photo[: 20 + 5 * index, : 30 + 7 * index]).save(source / f"{index}{suffix}")
    early, late = _child(MANY, make_engine("cpu"), source, tmp_path / "out")
    assert late <= 1.05 * early, (early >> 20, late >> 20)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("color_fix", ["none", "wavelet", "adain"])
def test_a_chunk_of_frames_takes_what_is_counted(tmp_path: Path, bits: int, color_fix: str) -> None:
    options, needed = FileOptions(color_fix=color_fix), {}
    frames = np.random.default_rng(0).integers(0, 2**bits, (16, 60, 100, 3)).astype(f"uint{bits}")
    for length in (5, 9):
        with open_engine(write_video_engine(tmp_path, chunk_frames=length, overlap_frames=2), threads=1) as engine:
            needed[length] = MemoryBudget(engine, options).picture_bytes(_job(100, 60, bits, "out.mkv"))
            run = ClipRun(engine, 2, color_fix=color_fix)
            tracemalloc.start()
            try:
                for chunk in chunks_of(frames, length, 2):
                    for _ in run.finished(chunk):
                        pass
                taken = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    counted = 9 * (needed[9] - needed[5]) // 4
    assert counted / 2 < taken < counted
