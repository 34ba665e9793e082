"""The window in a real browser, driven as people do."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from app_pictures import write_pictures
from browser import CONTRASTS, DESKTOP, LEAST_CONTRAST, PHONE, Browser, open_browser
from PIL import Image
from windows import (
    BUTTON,
    PYTHON,
    STILL,
    Window,
    bring,
    downloaded,
    opened,
    press,
    rows,
    upscaled,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(make_engine) -> Path:  # type: ignore[no-untyped-def]
    path = make_engine("cpu")
    path.with_name("identity.report.html").write_text("<p>A report</p>")
    return path


def choose(browser: Browser, label: str, value: str) -> None:
    """One of a list of settings."""
    place = f"document.querySelector('input[aria-label=\"{label}\"]')"
    browser.run(f"{place}.focus()")
    option = f"[...document.querySelectorAll('[role=option]')].find((o) => o.innerText.trim().endsWith({value!r}))"
    browser.wait(option + "?.getBoundingClientRect().height")
    browser.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    browser.wait(f"{place}.value === '{value}'")


def test_five_pictures_one_broken(
    browser: Browser, window: Window, engine: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    opened(browser, window)
    paths = write_pictures(tmp_path / "in", photo)
    bring(browser, *paths)
    before = rows(browser)
    assert "53×71 → 106×142" in before[0][1] and "71×53 → 142×106, 30 tiles, about" in before[1][1]
    assert "of memory" in before[1][1]
    assert "5 pictures to make: about" in browser.run("document.querySelector('.intsr-sum').innerText")
    press(browser, "Upscale")
    browser.wait("document.querySelectorAll('.queue .done').length === 4")
    browser.wait(STILL.format(5))
    after = rows(browser)
    assert [kind for kind, _ in after] == ["done", "done", "failed", "done", "done"]
    assert "\ncannot be read (image file is truncated)" in after[2][1]
    names = ["turned & tagged_x2.jpg", "clear_x2.png", "grey_x2.webp", "scan_x2.tif"]
    assert browser.run("[...document.querySelectorAll('.queue a.do')].map((a) => a.title)") == names
    whole = zipfile.ZipFile(io.BytesIO(downloaded(browser, ".intsr-all")))
    assert whole.namelist() == names and whole.testzip() is None
    made = [path for path in paths if path.name != "torn.png"]
    for place, (path, name) in enumerate(zip(made, names, strict=True)):
        expected = upscaled(engine, path, tmp_path / "out" / path.name)
        number = paths.index(path) + 1
        assert downloaded(browser, f".queue li:nth-child({number}) a.do") == expected, place
        assert whole.read(name) == expected
    # A TIFF is shown, too.
    browser.run("document.querySelector('.queue li:nth-child(5) [data-compare]').click()")
    shown = "[...document.querySelectorAll('.intsr-viewer img')].map((i) => [i.naturalWidth, i.naturalHeight])"
    browser.wait("document.querySelector('.intsr-viewer .state').textContent === ''")
    assert browser.run(shown) == [[71, 53], [142, 106]]


def test_before_and_after(browser: Browser, window: Window, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((900, 700)).save(tmp_path / "a.png")
    opened(browser, window)
    bring(browser, tmp_path / "a.png")
    press(browser, "Upscale")
    browser.wait("document.querySelector('[data-compare]')", 120)
    browser.run("document.querySelector('[data-compare]').click()")
    browser.wait("document.querySelector('.intsr-viewer .state').textContent === ''")
    facts = """(() => {
      const box = (name) => document.querySelector(".intsr-viewer " + name).getBoundingClientRect();
      const cut = getComputedStyle(document.querySelector(".intsr-viewer .after")).clipPath.match(/[\\d.]+px\\)$/)[0];
      const [stage, after, divider] = [box(".stage"), box(".after"), box(".divider")];
      return [stage.width, stage.height, after.left, after.top, after.width, divider.left + 1, parseFloat(cut)];
    })()"""
    width, height, left, _, shown, divider, cut = browser.run(facts)
    # Larger than the screen: whole at first, and cut where the divider is.
    assert shown <= width and divider == pytest.approx(width / 2, abs=1)
    assert left + cut == pytest.approx(divider, abs=1)
    # The mouse takes the divider along.
    for kind, x in (("mousePressed", divider), ("mouseMoved", divider - 200), ("mouseReleased", divider - 200)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=height / 2, button="left", buttons=1, clickCount=1)
    *_, moved, _ = browser.run(facts)
    assert moved == pytest.approx(divider - 200, abs=2)
    # So do keys.
    browser.run("document.querySelector('.intsr-viewer input').focus()")
    for _ in range(100):
        browser.press("ArrowRight")
    *_, cut = by_keys = browser.run(facts)
    assert by_keys[5] == pytest.approx(moved + width / 10, abs=3)
    assert by_keys[2] + cut == pytest.approx(by_keys[5], abs=1)
    # A pixel of the result is one of the screen.
    press(browser, "100 %")
    assert browser.run("document.querySelector('.intsr-viewer .after').getBoundingClientRect().width") == 1800
    assert browser.run("document.querySelector('.zoom').textContent") == "100 %"
    press(browser, "+")
    assert browser.run("document.querySelector('.zoom').textContent") == "150 %"
    # The picture goes along with the mouse elsewhere, and the wheel enlarges it where the mouse is.
    before = browser.run(facts)
    for kind, x in (("mousePressed", 100), ("mouseMoved", 60), ("mouseReleased", 60)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=100, button="left", buttons=1, clickCount=1)
    assert browser.run(facts)[2] == pytest.approx(before[2] - 40, abs=1)
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=-600)
    browser.wait("parseInt(document.querySelector('.zoom').textContent) > 250")
    assert browser.run("getComputedStyle(document.querySelector('.after')).imageRendering") == "pixelated"
    press(browser, "Close")
    assert browser.run("document.querySelector('.intsr-viewer').open") is False
    browser.wait("document.activeElement.hasAttribute('data-compare')")


def test_cancel_and_go_on(browser: Browser, window: Window, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    Image.fromarray(pixels[:20, :20]).save(tmp_path / "small.png")
    opened(browser, window)
    bring(browser, tmp_path / "large.png", tmp_path / "small.png")
    press(browser, "Upscale")
    browser.wait("document.querySelector('.intsr-sum progress')?.value > 0.02")
    assert "left" in browser.run("document.querySelector('.intsr-sum').innerText")
    # While it is under way, buttons of the list stay the same elements.
    browser.run("document.querySelector('[data-remove]').mark = true")
    share = browser.run("document.querySelector('.intsr-sum progress').value")
    browser.wait(f"document.querySelector('.intsr-sum progress').value > {share}")
    assert browser.run("document.querySelector('[data-remove]').mark")
    press(browser, "Cancel")
    browser.wait("document.querySelectorAll('.queue .stopped').length === 2")
    assert all("cancelled" in text for _, text in rows(browser))
    browser.run("document.querySelector('[data-remove]').click()")
    browser.wait("document.querySelectorAll('.queue li').length === 1")
    press(browser, "Upscale")
    browser.wait("document.querySelector('.queue .done')")
    press(browser, "Clear")
    browser.wait("!document.querySelector('.queue li')")


def test_settings_and_what_becomes_of_them(
    browser: Browser, window: Window, engine: Path, photo_path: Path, tmp_path: Path
) -> None:
    opened(browser, window)
    bring(browser, photo_path)
    for label, value in (("Scale", "x3"), ("Colour fix", "adain"), ("Format", "jpg")):
        choose(browser, label, value)
    browser.wait("document.querySelector('.queue').innerText.includes('213×159')")
    press(browser, "Upscale")
    browser.wait("document.querySelector('.queue .done')")
    expected = tmp_path / "expected.jpg"
    command = [str(PYTHON), "-m", "intsr", "upscale", str(engine), str(photo_path), "-o", str(expected)]
    subprocess.run([*command, "-s", "3", "--color-fix", "adain"], check=True, capture_output=True)
    assert downloaded(browser, ".queue a.do") == expected.read_bytes()
    # The page comes back as it was.
    opened(browser, window)
    browser.wait("document.querySelector('.queue .done')")
    assert browser.run("document.querySelector('input[aria-label=Scale]').value") == "x3"
    browser.run(
        "[...document.querySelectorAll('button')].find((b) => b.innerText.includes('About this engine')).click()"
    )
    browser.wait("document.querySelector('.intsr-facts')?.innerText.includes('openvino')")
    report = browser.run("[...document.querySelectorAll('a')].find((a) => a.innerText === 'Open its report').href")
    assert window.ask(urlsplit(report).path) == (200, b"<p>A report</p>")


def test_a_tiff_that_is_made_again_is_shown_as_it_is(
    browser: Browser, window: Window, photo: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "scan.tif")
    opened(browser, window)
    bring(browser, tmp_path / "scan.tif")
    widths = []
    for times in ("x2", "x3"):
        if times != "x2":
            choose(browser, "Scale", times)
        press(browser, "Upscale")
        browser.wait(f"document.querySelector('.queue .done')?.innerText.includes('{int(times[1]) * 71}×')")
        browser.run("document.querySelector('[data-compare]').click()")
        browser.wait("document.querySelector('.intsr-viewer .state').textContent === ''")
        widths.append(browser.run("document.querySelector('.intsr-viewer .after').naturalWidth"))
        press(browser, "Close")
    assert widths == [142, 213]


def test_a_folder_is_dropped(browser: Browser, window: Window, photo: np.ndarray, tmp_path: Path) -> None:
    for name in ("day 1", ".small"):
        (tmp_path / "tour" / name).mkdir(parents=True)
    for name in ("tour/b.png", "tour/day 1/a.png", "tour/.hidden.png", "tour/.small/b.png"):
        Image.fromarray(photo).save(tmp_path / name)
    (tmp_path / "tour" / "notes.txt").write_text("no picture")
    opened(browser, window)
    browser.drop(".drop", tmp_path / "tour")
    browser.wait("document.querySelectorAll('.queue li').length === 2")
    assert sorted(text.split("\n")[0] for _, text in rows(browser)) == ["tour/b.png", "tour/day 1/a.png"]
    assert (
        browser.run("document.querySelector('.drop-state').textContent") == "1 other file of the folder was left out"
    )
    press(browser, "Upscale")
    browser.wait("document.querySelectorAll('.queue .done').length === 2")
    whole = zipfile.ZipFile(io.BytesIO(downloaded(browser, ".intsr-all")))
    assert sorted(whole.namelist()) == ["tour/b_x2.png", "tour/day 1/a_x2.png"]


def test_two_browsers_at_once(
    browser: Browser, window: Window, engine: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    other = open_browser(tmp_path / "other")
    try:
        pictures = []
        for place, one in enumerate((browser, other)):
            paths = [tmp_path / f"{place}-{number}.png" for number in range(3)]
            for number, path in enumerate(paths):
                Image.fromarray(np.roll(np.tile(photo, (8, 8, 1)), place + number, 1)).save(path)
            opened(one, window)
            bring(one, *paths)
            pictures.append(paths)
        press(browser, "Upscale")
        press(other, "Upscale")
        other.wait("document.querySelector('.intsr-sum').innerText.includes('taking turns with 1 other browser')")
        for one, paths in zip((browser, other), pictures, strict=True):
            one.wait("document.querySelectorAll('.queue .done').length === 3", 120)
            for number, path in enumerate(paths):
                expected = upscaled(engine, path, tmp_path / "out" / path.name)
                assert downloaded(one, f".queue li:nth-child({number + 1}) a.do") == expected
            names = [text.split("\n")[0] for _, text in rows(one)]
            assert names == [path.name for path in paths]
    finally:
        other.close()


@pytest.mark.parametrize(("scheme", "size"), [("dark", PHONE), ("light", DESKTOP), ("dark", DESKTOP)])
def test_it_can_be_read_everywhere(
    browser: Browser, window: Window, photo: np.ndarray, tmp_path: Path, scheme: str, size: tuple[int, int]
) -> None:
    opened(browser, window, size, scheme)
    bring(browser, *write_pictures(tmp_path / "in", photo))
    button = BUTTON.format("Upscale")
    browser.wait(f"{button} && !{button}.disabled")
    waiting = browser.run(CONTRASTS)
    assert "BUTTON Upscale" in [what for _, what in waiting] and waiting[0][0] >= LEAST_CONTRAST, waiting[:5]
    press(browser, "Upscale")
    browser.wait("document.querySelectorAll('.queue .done').length === 4")
    browser.wait(STILL.format(5))
    browser.run(
        "[...document.querySelectorAll('button')].find((b) => b.innerText.includes('About this engine')).click()"
    )
    browser.wait("document.querySelector('.intsr-facts')?.getBoundingClientRect().height")
    found = [item for item in browser.run(CONTRASTS) if "◀" not in item[1]]
    assert len(found) > 40
    assert found[0][0] >= LEAST_CONTRAST, found[:5]
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(",")[:3])) < 128) == (scheme == "dark")
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    small = "[...document.querySelectorAll('.queue button, .queue a.do, .drop label')]"
    assert browser.run(
        f"{small}.map((b) => b.getBoundingClientRect()).every((b) => b.height >= 32 && b.right <= innerWidth)"
    )
    browser.run("document.querySelector('[data-compare]').click()")
    browser.wait("document.querySelector('.intsr-viewer .state').textContent === ''")
    assert browser.run("document.querySelector('.intsr-viewer').scrollWidth") <= size[0]
    buttons = "[...document.querySelectorAll('.intsr-viewer button')]"
    assert browser.run(f"{buttons}.every((b) => b.getBoundingClientRect().right <= innerWidth)")
    if size == PHONE:
        # Two fingers.
        browser.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
        before = browser.run("parseInt(document.querySelector('.zoom').textContent)")
        for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", 0)):
            fingers = [{"x": 187 + side * apart, "y": 300, "id": place} for place, side in enumerate((-1, 1))]
            browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers if apart else [])
        assert browser.run("parseInt(document.querySelector('.zoom').textContent)") == pytest.approx(
            4 * before, rel=0.1
        )
