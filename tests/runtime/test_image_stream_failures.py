"""Writing that is broken off, or goes wrong: nothing is left, nothing hangs, memory stays bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.writer import open_writer

LOSSLESS = (".png", ".tif", ".bmp")
STREAMED = (".png", ".jpg", ".tif")
ALL = (*STREAMED, ".webp", ".avif", ".bmp")


def _nothing_is_left(folder: Path, threads: int) -> None:
    assert list(folder.iterdir()) == []
    assert threading.active_count() == threads


def _record_what_is_encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders that came to an end of their own."""
    encoded: list[str] = []

    def recording(name: str) -> Callable[..., None]:
        encode = getattr(image_stream, name)

        def recorded(*args: object) -> None:
            encode(*args)
            encoded.append(name)

        return recorded

    for name in ("encode_stream", "encode_whole"):
        monkeypatch.setattr(image_stream, name, recording(name))
    return encoded


@pytest.mark.parametrize(("suffix", "name"), [(".png", "encode_stream"), (".webp", "encode_whole")])
def test_what_is_encoded_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str) -> None:
    """Else the next test would say nothing."""
    encoded = _record_what_is_encoded(monkeypatch)
    with open_writer(tmp_path / f"a{suffix}", 8, 4, 3, np.uint8) as writer:
        writer.write(np.zeros((4, 8, 3), np.uint8))
    assert encoded == [name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [0, 1, 400])
@pytest.mark.parametrize("suffix", ALL)
def test_an_exception_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, written: int, error: type[BaseException]
) -> None:
    encoded = _record_what_is_encoded(monkeypatch)
    threads, descriptors = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(error), open_writer(tmp_path / f"a{suffix}", 4000, 10000, 3, np.uint8) as writer:
        if written:
            writer.write(np.zeros((written, 4000, 3), np.uint8))
        raise error
    _nothing_is_left(tmp_path, threads)
    assert encoded == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize("suffix", ALL)
def test_the_number_of_rows_is_checked(tmp_path: Path, suffix: str) -> None:
    threads = threading.active_count()
    for height, message in ((9, "9 rows; expected 10"), (11, "11 rows; expected 10")):
        opened = open_writer(tmp_path / f"a{suffix}", 7, 10, 3, np.uint8)
        with pytest.raises(ImageError, match=message), opened as writer:
            writer.write(np.zeros((height, 7, 3), np.uint8))
        _nothing_is_left(tmp_path, threads)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((5, 6, 3), np.uint8),
        np.zeros((5, 7, 4), np.uint8),
        np.zeros((5, 7), np.uint8),
        np.zeros((5, 7, 3), np.uint16),
        np.zeros(7, np.uint8),
    ],
)
def test_rows_of_another_kind(tmp_path: Path, rows: np.ndarray) -> None:
    opened = open_writer(tmp_path / "a.png", 7, 5, 3, np.uint8)
    with pytest.raises(ImageError, match=r"rows of .*expected rows of \(7, 3\) uint8"), opened as writer:
        writer.write(rows)
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from intsr.errors import ImageError
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.writer import open_writer
path, noise = Path(sys.argv[1]), np.random.default_rng(0).integers(0, 256, (100, 1200, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with open_writer(path, 1200, 1200, 3, np.uint8) as writer:
        for _ in range(12):
            writer.write(noise)
except ImageError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
def test_a_full_disk_is_an_image_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    result = subprocess.run(
        [sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.startswith(f"{path}: cannot be written (")
    assert "File too large" in result.stdout
    assert (result.stdout.count("\n"), result.stderr) == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", STREAMED)
def test_an_encoder_that_fails_does_not_block(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows keep coming: far more than there is room for between the threads."""
    threads = threading.active_count()

    def broken(*_: object) -> None:
        raise OSError("out of order")

    monkeypatch.setattr("intsr.runtime.pictures.writer.encode_stream", broken)
    opened = open_writer(tmp_path / f"a{suffix}", 10000, 10000, 3, np.uint8)
    with pytest.raises(ImageError, match=r"cannot be written \(out of order\)"), opened as writer:
        for _ in range(100):
            writer.write(np.zeros((100, 10000, 3), np.uint8))
    _nothing_is_left(tmp_path, threads)


_NO_MEMORY = """
import os, resource, sys
from pathlib import Path
import numpy as np
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.writer import open_writer

def fail(source, *_):
    # As libvips, which keeps a descriptor of its own.
    os.dup(source)
    # The writer has filled the pipe by then, and from here on there is no memory but what is at hand.
    while len(os.read(source, 1 << 10)) < 1 << 10:
        pass
    resource.setrlimit(resource.RLIMIT_AS, (1, 1))
    raise MemoryError

image_stream.encode_stream = fail
rows = np.zeros((1000, 1000, 3), np.uint8)
try:
    with open_writer(Path(sys.argv[1]), 1000, 100000, 3, np.uint8) as writer:
        for _ in range(100):
            writer.write(rows)
except BaseException as error:
    print(type(error).__name__)
"""


def test_an_encoder_without_memory_does_not_block(tmp_path: Path) -> None:
    """What the writer still has to say goes nowhere, and needs no memory for that."""
    command = [sys.executable, "-c", _NO_MEMORY, str(tmp_path / "a.png")]
    # Large pieces that were given back are not at hand again, and no thread has a stock of its own.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment)
    assert (result.stdout, result.stderr) == ("MemoryError\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("begun", [0, 1])
def test_threads_that_cannot_be_started_are_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    threads, descriptors = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    start, asked = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        asked.append(thread)
        if len(asked) > begun:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    opened = open_writer(tmp_path / "a.png", 8, 4, 3, np.uint8)
    with pytest.raises(ImageError, match="no thread could be started"), opened:
        raise AssertionError("opened")
    _nothing_is_left(tmp_path, threads)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


_KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.writer import open_writer
try:
    with open_writer(Path(sys.argv[1]), 4000, 60000, 3, np.uint8) as writer:
        for number in range(600):
            writer.write(np.random.default_rng(number).integers(0, 256, (100, 4000, 3), np.uint8))
            print(number, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("suffix", STREAMED)
def test_ctrl_c_in_the_middle(tmp_path: Path, suffix: str) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / f"a{suffix}")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out.endswith("interrupted\n")
    assert (process.returncode, err) == (0, "")
    assert list(tmp_path.iterdir()) == []


_LARGE = """
import sys
import numpy as np
from pathlib import Path
from intsr.memory import peak_resident_bytes
from intsr.runtime.pictures import writer as image_stream
from intsr.runtime.pictures.writer import open_writer
path, resize_to = Path(sys.argv[1]), eval(sys.argv[2])
def write(side, resize_to):
    rows = (np.arange(64 * side * 3) // 500).astype(np.uint8).reshape(64, side, 3)
    with open_writer(path, side, side, 3, np.uint8, resize_to=resize_to) as writer:
        for top in range(0, side, 64):
            writer.write(rows[: side - top])
write(64, None)
before = peak_resident_bytes()
write(6000, resize_to)
print(peak_resident_bytes() - before)
"""


@pytest.mark.parametrize(
    ("suffix", "resize_to"), [(".png", None), (".jpg", None), (".tif", None), (".jpg", (4000, 4000))]
)
def test_memory_is_bounded(tmp_path: Path, suffix: str, resize_to: tuple[int, int] | None) -> None:
    """108 MB of pixels, as fast as they can be made: what is on its way, and some rows."""
    command = [sys.executable, "-c", _LARGE, str(tmp_path / f"a{suffix}"), str(resize_to)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert int(result.stdout) < 95e6
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (resize_to or (6000, 6000))
