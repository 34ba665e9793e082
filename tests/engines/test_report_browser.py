"""A report in a real browser, without a network: slider, tables, colours, widths. Skips where no Chromium is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_pages as pages

pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("jinja2", reason="the report extra is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
DESKTOP, PHONE = (1280, 900), (375, 812)
# WCAG 2.2, AA, for text.
LEAST_CONTRAST = 4.5
CONTRASTS = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a > 0.5) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || !box.width || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element instanceof SVGElement ? style.fill : style.color));
    const paper = light(ground(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([ratio, element.tagName + " " + element.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


class Browser:
    """Chromium by its own protocol, over a pipe: no driver, no port, no library."""

    def __init__(self, binary: str, profile: Path) -> None:
        to_read, to_write = os.pipe()
        answers, answers_end = os.pipe()

        def wire() -> None:
            # The protocol is spoken over descriptors 3 and 4, which may be in use: by way of others.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, answers_end)]
            for descriptor, end in zip((3, 4), ends, strict=True):
                os.dup2(end, descriptor)

        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=wire,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(answers_end)
        self._out, self._in = os.fdopen(to_write, "wb", buffering=0), os.fdopen(answers, "rb")
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._out.write(
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in.fileno(), 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        values: dict[str, Any] = json.loads(message)
        return values

    def open(self, path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        """Load the file and wait for it."""
        width, height = size
        mobile = size == PHONE
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            code = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13}[key]
            text = {"text": "\r"} if key == "Enter" and kind == "rawKeyDown" else {}
            kind = "keyDown" if text else kind
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def named(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._out.close()
        self._in.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chosen = os.environ.get("CHROME")
    binary = chosen or next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and CHROME names none")
    opened = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(made: pages.Made) -> Path:
    return made.folder / "all.html"


def test_nothing_is_asked_for_and_nothing_fails(browser: Browser, page: Path) -> None:
    browser.open(page)
    urls = {event["request"]["url"].partition(",")[0] for event in browser.named("Network.requestWillBeSent")}
    assert {url for url in urls if not url.startswith("data:image/")} == {page.as_uri()}
    assert browser.named("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert browser.run(
        "[...document.images].every((i) => i.naturalWidth > 0 || getComputedStyle(i).display == 'none')"
    )
    assert browser.run("[...document.images].every((i) => i.alt.length > 3)")
    assert browser.run("document.querySelectorAll('script').length") == 1


def divider_share(browser: Browser) -> float:
    """Where the divider is drawn, and where the left picture is cut: they must agree. 0 to 1."""
    drawn, cut = browser.run(
        """(() => {
          const stage = document.querySelector(".stage").getBoundingClientRect();
          const divider = document.querySelector(".divider").getBoundingClientRect();
          const clip = getComputedStyle(document.querySelector(".stack:not([hidden]) img.left")).clipPath;
          const cut = clip.match(/inset\\(0px (?:calc\\(100% - )?([\\d.]+)%/)[1] / 100;
          return [(divider.left - stage.left) / stage.width, clip.includes("calc") ? cut : 1 - cut];
        })()"""
    )
    assert drawn == pytest.approx(cut, abs=0.002)
    return float(drawn)


def test_the_slider_moves_by_mouse_and_keys(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert divider_share(browser) == pytest.approx(0.5, abs=0.002)
    box = "document.querySelector('.stage').getBoundingClientRect()"
    x, y, width, height = browser.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    browser.click(x + 0.2 * width, y + 0.3 * height)
    assert divider_share(browser) == pytest.approx(0.2, abs=0.02)
    before = divider_share(browser)
    for _ in range(10):
        browser.press("ArrowRight")
    assert divider_share(browser) == pytest.approx(before + 0.05, abs=0.002)
    assert browser.run("document.activeElement.type") == "range"
    assert "Low resolution" in browser.run("document.activeElement.getAttribute('aria-valuetext')")


@pytest.mark.slow
def test_pictures_and_sides_are_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = """(() => {
      const images = [...document.querySelectorAll(".stack img")].filter((i) => i.getBoundingClientRect().width);
      return images.map((i) => i.dataset.variant + " of " + i.closest(".stack").dataset.picture);
    })()"""
    first = browser.run(shown)
    assert len(first) == 2 and first[0] == "lr of 0"
    for side, value in (("left", "fp"), ("right", "hr"), ("picture", "1")):
        browser.run(
            f"""(() => {{ const s = document.querySelector("[data-choose={side}]");
            s.value = "{value}"; s.dispatchEvent(new Event("change")); }})()"""
        )
    assert browser.run(shown) == ["fp of 1", "hr of 1"]
    assert browser.run("document.querySelector('.on-right').textContent") == "Original"
    assert browser.run("document.querySelectorAll('[data-note]:not([hidden])').length") == 1


@pytest.mark.slow
@pytest.mark.parametrize("column", ["SQNR, output", "Layer"])
def test_tables_sort(browser: Browser, page: Path, column: str) -> None:
    browser.open(page)
    find = f"""(() => {{
      window.table = [...document.querySelectorAll("table.sortable")]
        .find((t) => t.caption.textContent === "Integer layers in graph order");
      window.heading = [...table.tHead.rows[0].cells].find((c) => c.textContent.trim() === {json.dumps(column)});
      heading.querySelector("button").focus();
    }})()"""
    values = """[...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex])
      .map((c) => heading.classList.contains("num") ? Number(c.dataset.value) : c.textContent)"""
    browser.run(find)
    before = browser.run(values)
    for order, backwards in (("ascending", False), ("descending", True)):
        browser.press("Enter")
        assert browser.run("heading.getAttribute('aria-sort')") == order
        after = browser.run(values)
        # Names are compared as people do, numbers in them by their value: that order is the browser's own.
        if column != "Layer":
            assert after == sorted(before, reverse=backwards)
        assert sorted(after) == sorted(before)
    assert after != before and len(after) > 30
    assert browser.run("document.querySelectorAll('[aria-sort=ascending], [aria-sort=descending]').length") == 1


@pytest.mark.slow
def test_rows_without_a_value_stay_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(
        """(() => {
          window.table = [...document.querySelectorAll("table.sortable")]
            .find((t) => t.caption.textContent === "Scores of every picture");
          window.heading = [...table.tHead.rows[0].cells].find((c) => c.textContent.includes("PSNR to"));
        })()"""
    )
    for _ in range(2):
        browser.run("heading.querySelector('button').click()")
        values = browser.run("[...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].dataset.value)")
        assert values[:2] != ["", ""] and set(values[2:]) == {""} and len(values) == 6


@pytest.mark.parametrize(
    ("scheme", "size"), [("dark", PHONE), pytest.param("light", DESKTOP, marks=pytest.mark.slow)]
)
def test_text_can_be_read(browser: Browser, page: Path, scheme: str, size: tuple[int, int]) -> None:
    browser.open(page, size, scheme)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = browser.run(CONTRASTS)
    assert len(found) > 300
    assert found[0][0] >= LEAST_CONTRAST, found[:5]
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 128) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, (320, 640)])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page, size)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == size[0]
    # What is wider scrolls in its own box, which keys can reach.
    wide = "[...document.querySelectorAll('.scroll')].filter((b) => b.scrollWidth > b.clientWidth)"
    assert browser.run(f"{wide}.every((b) => b.tabIndex === 0 && b.getAttribute('aria-label'))")
    if size == PHONE:
        assert browser.run(f"{wide}.length") > 5
