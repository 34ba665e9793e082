"""Many pictures in one process: memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_CHILD = """
import sys, pathlib
from intsr.memory import resident_bytes
from intsr.runtime.batch.jobs import Job
from intsr.runtime.engine import open_engine
from intsr.runtime.batch.files import upscale_files
from intsr.runtime.batch.options import FileOptions
engine, source, output = map(pathlib.Path, sys.argv[1:4])
pictures = sorted(source.iterdir()) * int(sys.argv[4])
jobs = [Job(path, output / f"{i}{path.suffix}") for i, path in enumerate(pictures[: int(sys.argv[4])])]
with open_engine(engine, threads=1) as opened:
    for count, report in enumerate(upscale_files(opened, jobs, FileOptions(color_fix="wavelet")), 1):
        assert report.status == "ok", report
        if count in (len(jobs) // 2, len(jobs)):
            print(resident_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 500])
def test_memory_does_not_grow(
    make_engine: Callable[..., Path], photo: np.ndarray, tmp_path: Path, count: int
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for index, suffix in enumerate((".png", ".jpg", ".webp", ".tif", ".png", ".jpg")):
        Image.fromarray(photo[: 20 + 5 * index, : 30 + 7 * index]).save(source / f"{index}{suffix}")
    arguments = map(str, (make_engine("cpu"), source, tmp_path / "out", count))
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late <= 1.05 * early, (early >> 20, late >> 20)
