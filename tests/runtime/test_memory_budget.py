"""How much a picture will take is known before it is decoded, and errs high."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr import memory
from intsr.errors import OutOfMemoryError, UsageError
from intsr.runtime.backends.protocol import Backend
from intsr.runtime.batch.memory_budget import MemoryBudget, bytes_from_text, picture_parts
from intsr.runtime.pictures.reader import ImageInfo
from intsr.runtime.upscaler import Upscaler
from intsr.types import TensorInfo

OUT = Path("out.png")


class Identity:
    def __init__(self) -> None:
        self.input = self.output = TensorInfo("x", (1, 3, 128, 128), "float32")

    def run(self, x: np.ndarray) -> np.ndarray:
        return x

    def close(self) -> None:
        pass


def _upscaler(activation_bytes: int = 0) -> Upscaler:
    backend = Backend((Identity(), Identity(), Identity()))
    backend.activation_bytes = activation_bytes
    return Upscaler(backend, 32, 8, 4, resize_filter="bicubic", color_fix="wavelet")


def _info(width: int, height: int, bits: int = 8) -> ImageInfo:
    return ImageInfo(width, height, "RGB", False, bits=bits, channels=3)


def _needed(info: ImageInfo, output: Path = OUT) -> int:
    return picture_parts(_upscaler(), info, (info.width_px * 4, info.height_px * 4), output).total


def test_only_the_input_grows_with_the_height() -> None:
    low, high = _needed(_info(2000, 2000)), _needed(_info(2000, 4000))
    input_bytes = _info(2000, 2000).decode_bytes
    assert high - low == pytest.approx(input_bytes * 1.1, rel=1e-6)
    assert _needed(_info(4000, 2000)) - low > 2 * input_bytes


def test_formats_that_hold_the_picture_count_it() -> None:
    info = _info(1000, 1000)
    assert _needed(info, Path("out.webp")) - _needed(info) > 4000 * 4000 * 3


def test_16_bits_take_more() -> None:
    assert _needed(_info(1000, 1000, 16)) > _needed(_info(1000, 1000)) + 8_000_000


def test_a_hundred_megapixels_fit_into_four_gigabytes() -> None:
    assert _needed(_info(10_000, 10_000)) < 3.5e9


def test_what_does_not_fit_is_one_line_with_numbers() -> None:
    upscaler = _upscaler()
    needed = upscaler.resident_bytes_at(32) + _needed(_info(1000, 1000))
    MemoryBudget(needed + 10).check_picture(upscaler, _info(1000, 1000), (4000, 4000), OUT)
    with pytest.raises(OutOfMemoryError) as caught:
        MemoryBudget(needed - 10).check_picture(upscaler, _info(1000, 1000), (4000, 4000), OUT)
    text = str(caught.value)
    assert f"4000x4000 pixels out need about {needed >> 20} MiB" in text
    assert f"expected at most {(needed - 10) >> 20} MiB" in text and "cut the picture into parts" in text


def test_the_engine_counts_by_the_area_of_its_tile() -> None:
    upscaler = _upscaler(activation_bytes=1 << 30)
    assert upscaler.resident_bytes_at(32) - upscaler.resident_bytes_at(16) == 3 << 28


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
    assert memory.free_bytes() == 8 << 30
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    assert memory.free_bytes() == 8 << 30
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    assert memory.free_bytes() == 1 << 30
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 29}\n")
    assert memory.free_bytes() == (1 << 30) + (1 << 29)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{9223372036854771712}\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text(f"{1 << 30}\n")
    assert memory.free_bytes() == 8 << 30
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert memory.free_bytes() is None and MemoryBudget().fits(1 << 60)


def _group(folder: Path, limit: object, used_bytes: int, version: int = 2, stat: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, text in zip((*names, "memory.stat"), (limit, used_bytes, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_the_limit_of_a_group_is_for_those_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with systemd's MemoryMax: the mounted root knows nothing of it."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
    (tmp_path / "cgroup").write_text("1:name=systemd:/other\n0::/user.slice/a:b.scope\n")
    _group(tmp_path / "fs/user.slice/a:b.scope", "max", 100)
    assert memory.free_bytes() == 8 << 30
    _group(tmp_path / "fs/user.slice", 3 << 20, 1 << 20)
    assert memory.free_bytes() == 2 << 20
    _group(tmp_path / "fs/user.slice/a:b.scope", 1 << 20, 1000)
    assert memory.free_bytes() == (1 << 20) - 1000
    (tmp_path / "cgroup").write_text("0::/../outside\n")
    assert memory.free_bytes() == 8 << 30


def test_version_1_counts_cached_files_of_groups_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
    (tmp_path / "cgroup").write_text("4:cpu,memory:/job\n0::/\n")
    stat = "inactive_file 10\ntotal_inactive_file 500000"
    _group(tmp_path / "fs/memory/job", 1 << 20, 1 << 19, 1, stat)
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


_CHILD = """
import sys, pathlib
import numpy as np
from intsr.memory import peak_resident_bytes, resident_bytes, restart_peak
from intsr.runtime.batch.jobs import Job
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.reader import read_info
from intsr.runtime.batch.memory_budget import picture_parts
from intsr.runtime.batch.files import FileOptions, upscale_file
engine, source, output, fix = sys.argv[1:]
with open_engine(engine, threads=1) as opened:
    warm = pathlib.Path(output).with_name("warm.png")
    upscale_file(opened, Job(warm, warm.with_name("warm-out.png")), FileOptions(fix))
    restart_peak()
    before = resident_bytes()
    upscale_file(opened, Job(pathlib.Path(source), pathlib.Path(output)), FileOptions(fix))
    info = read_info(pathlib.Path(source))
    size = (info.width_px * opened.upscale_factor, info.height_px * opened.upscale_factor)
    print(peak_resident_bytes() - before, picture_parts(opened, info, size, pathlib.Path(output), fix).total)
"""


@pytest.mark.parametrize(("suffix", "fix"), [(".png", "wavelet"), (".jpg", "adain"), (".tif", "none")])
def test_predictions_err_high_and_not_by_much(make_engine, tmp_path: Path, suffix: str, fix: str) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1200, 1000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"in{suffix}")
    Image.fromarray(noise[:50, :50]).save(tmp_path / "warm.png")
    arguments = [make_engine(), tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", fix]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    measured, predicted = map(int, done.stdout.split())
    assert measured <= predicted <= 6 * measured + (64 << 20), (measured >> 20, predicted >> 20)
