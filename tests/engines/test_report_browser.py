"""A report in a real browser, without a network: slider, tables, colours, widths. Skips where no Chromium is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_pages as pages
from browser import CONTRASTS, DESKTOP, LEAST_CONTRAST, PHONE, Browser, open_browser

pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("jinja2", reason="the report extra is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = open_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(made: pages.Made) -> Path:
    return made.folder / "all.html"


def test_nothing_is_asked_for_and_nothing_fails(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
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
    browser.open(page.as_uri())
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
    browser.open(page.as_uri())
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
    browser.open(page.as_uri())
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
    browser.open(page.as_uri())
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
    browser.open(page.as_uri(), size, scheme)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = browser.run(CONTRASTS)
    assert len(found) > 300
    assert found[0][0] >= LEAST_CONTRAST, found[:5]
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 128) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, (320, 640)])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page.as_uri(), size)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == size[0]
    # What is wider scrolls in its own box, which keys can reach.
    wide = "[...document.querySelectorAll('.scroll')].filter((b) => b.scrollWidth > b.clientWidth)"
    assert browser.run(f"{wide}.every((b) => b.tabIndex === 0 && b.getAttribute('aria-label'))")
    if size == PHONE:
        assert browser.run(f"{wide}.length") > 5
