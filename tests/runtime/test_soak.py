"""Many pictures in one process: memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

_CHILD = """
import sys, pathlib
from intsr.memory import resident_bytes
from intsr.runtime.batch.jobs import Job
from intsr.runtime.engine import open_engine
from intsr.runtime.batch.files import upscale_files
from intsr.runtime.batch.options import FileOptions
engine, source, output = map(pathlib.Path, sys.argv[1:])
pictures = sorted(source.iterdir())
jobs = [Job(pictures[i % len(pictures)], output / f"{i}{pictures[i % len(pictures)].suffix}") for i in range(500)]
with open_engine(engine, threads=1) as opened:
    for count, report in enumerate(upscale_files(opened, jobs, FileOptions(color_fix="wavelet")), 1):
        assert report.status == "ok", report
        if count in (50, 500):
            print(resident_bytes())
"""


def test_five_hundred_pictures(make_engine, photo: np.ndarray, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "in"
    source.mkdir()
    for index, suffix in enumerate((".png", ".jpg", ".webp", ".tif", ".png", ".jpg")):
        Image.fromarray(photo[: 20 + 5 * index, : 30 + 7 * index]).save(source / f"{index}{suffix}")
    arguments = map(str, (make_engine("cpu"), source, tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late <= 1.05 * early, (early >> 20, late >> 20)
