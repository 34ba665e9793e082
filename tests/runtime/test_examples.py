"""What docs/use/python.md and docs/use/video.md show, run as it stands there."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs" / "use"


def _blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _run(code: str, folder: Path, path: str | None = None) -> str:
    variables = {"PATH": path} if path else None
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, make_engine, photo: np.ndarray) -> Path:  # type: ignore[no-untyped-def]
    (tmp_path / "model.engine").symlink_to(make_engine("cpu"))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize("index", range(len(_blocks("python.md"))))
def test_python_page(index: int, folder: Path) -> None:
    printed = _run(_blocks("python.md")[index], folder)
    made = {
        0: (folder / "large.png", (142, 106)),
        3: (folder / "large.tif", (180, 240)),
        4: (folder / "out/photo.jpg", (142, 106)),
    }
    if index in made:
        path, size = made[index]
        with Image.open(path) as image:
            assert image.size == size
    if index in (1, 2):
        assert printed.splitlines() == ["(48, 64, 3)"] * 3
    if index == 4:
        assert printed.split() == ["ok", "142", "106", "None"]


# Gives three frames of the size that the page names; keeps what it is fed.
_FFMPEG = """#!{python}
import pathlib, sys
if "-i" in sys.argv and sys.argv[sys.argv.index("-i") + 1] == "film.mp4":
    for level in (0, 100, 200):
        sys.stdout.buffer.write((bytes(range(level, level + 40)) * 100_000)[: 320 * 180 * 3])
else:
    pathlib.Path(sys.argv[-1]).write_bytes(sys.stdin.buffer.read())
"""


def test_video_page(folder: Path) -> None:
    (block,) = _blocks("video.md")
    ffmpeg = folder / "bin" / "ffmpeg"
    ffmpeg.parent.mkdir()
    ffmpeg.write_text(_FFMPEG.format(python=sys.executable))
    ffmpeg.chmod(ffmpeg.stat().st_mode | stat.S_IXUSR)
    _run(block, folder, str(ffmpeg.parent))
    assert (folder / "film-x4.mp4").stat().st_size == 3 * 640 * 360 * 3
