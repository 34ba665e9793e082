"""The window without an engine: the demonstration's is compiled, starts at once, and makes what the pages show."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser
from PIL import Image
from windows import (
    ABOUT,
    STILL,
    Window,
    bring,
    needs_the_extra,
    opened,
    press,
    rows,
    upscaled,
)

from intsr.runtime.app.demonstration import demonstration_engine

pytestmark = pytest.mark.slow

# With INTSR_SCREENSHOTS=1 what these tests see goes there.
SHOWN_IN = Path(__file__).parents[2] / "docs" / "use" / "app"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def demonstration() -> Path:
    """Compiled as at a first start, into the cache of these tests."""
    needs_the_extra()
    said: list[str] = []
    path = demonstration_engine(said.append)
    assert len(said) == 1
    return path


@pytest.fixture(scope="module")
def window(demonstration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """Of no engine that is named."""
    opened = Window([], tmp_path_factory.mktemp("window"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photographs at a quarter of their size, and a letter."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut.jpg", "coffee.png", "cat.jpg"):
        image = Image.fromarray(getattr(data, {"cat": "chelsea"}.get(name[:-4], name[:-4]))())
        image.resize((image.width // 4, image.height // 4), Image.Resampling.BICUBIC).save(folder / name, quality=95)
    (folder / "letter.png").write_text("no picture")
    return [folder / name for name in ("astronaut.jpg", "coffee.png", "cat.jpg", "letter.png")]


def keep(browser: Browser, folder: Path, name: str) -> None:
    path = folder / name
    browser.screenshot(path, quality=80 if path.suffix == ".jpg" else None)
    assert 5_000 < path.stat().st_size < MOST_BYTES
    if os.environ.get("INTSR_SCREENSHOTS"):
        SHOWN_IN.mkdir(exist_ok=True)
        shutil.copy(path, SHOWN_IN / name)


def test_it_makes_what_upscale_makes(
    browser: Browser, window: Window, demonstration: Path, photographs: list[Path], tmp_path: Path
) -> None:
    opened(browser, window)
    bring(browser, *photographs)
    browser.wait("document.querySelector('.intsr-sum').innerText.includes('of memory')", 60)
    assert browser.run("document.querySelector('input[aria-label=Engine]').value") == "demonstration"
    keep(browser, tmp_path, "before.png")
    press(browser, "Upscale")
    browser.wait("document.querySelectorAll('.queue .done').length === 3", 120)
    browser.wait(STILL.format(4))
    browser.run(f"{ABOUT}.click()")
    browser.wait("document.querySelector('.intsr-facts')?.innerText.includes('W8A8 by maxmin+let')")
    keep(browser, tmp_path, "after.png")
    (result,) = window.temporary.rglob("*/1/result.jpg")
    assert result.read_bytes() == upscaled(demonstration, photographs[0], tmp_path / "expected.jpg")
    browser.run("document.querySelector('[data-compare]').click()")
    browser.wait("document.querySelector('.intsr-viewer .state').textContent === ''")
    for _ in range(2):
        browser.run("document.querySelector('.intsr-viewer [data-do=in]').click()")
    keep(browser, tmp_path, "compare.jpg")
    # The same session, on a phone and dark.
    opened(browser, window, PHONE, "dark")
    browser.wait("document.querySelectorAll('.queue .done').length === 3")
    keep(browser, tmp_path, "phone.png")
    assert [kind for kind, _ in rows(browser)] == ["done", "done", "done", "failed"]
    opened(browser, window, DESKTOP, "dark")
    browser.wait("document.querySelectorAll('.queue .done').length === 3")
    keep(browser, tmp_path, "dark.png")


def test_another_start_compiles_nothing(demonstration: Path, tmp_path: Path) -> None:
    """It is there before its engine is opened: docs/use/app.md says how soon."""
    changed = demonstration.stat().st_mtime_ns
    again = Window([], tmp_path / "temporary")
    assert again.ask("/")[0] == 200
    assert "compiling" not in again.end()[1] and demonstration.stat().st_mtime_ns == changed
