"""What docs/use/python.md and docs/use/video.md show, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs" / "use"


def _blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
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


def test_video_page(folder: Path) -> None:
    from films import PLAIN, scenes, write_film

    (block,) = _blocks("video.md")
    write_film(folder / "clip.mp4", scenes(3, 0), PLAIN)
    printed = _run(block.replace("        ...", "        print(large.shape)"), folder)
    assert printed.splitlines() == ["(64, 96, 3)"] * 3
