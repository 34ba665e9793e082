"""`intsr app` as people start and use it: a Python that has the extra `app` and no torch, and a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import DESKTOP, Browser, open_browser

# `make build/app`.
PYTHON = Path(__file__).parents[2] / "build" / "app" / "bin" / "python"

# The whole list is there, and nothing is under way.
STILL = (
    "document.querySelectorAll('.queue li').length === {} && "
    "!document.querySelector('.queue .queued, .queue .running')"
)
BUTTON = "[...document.querySelectorAll('button')].find((b) => b.textContent.trim() === '{}')"
ABOUT = "[...document.querySelectorAll('button')].find((b) => b.innerText.includes('About this engine'))"


def needs_the_extra() -> None:
    """Skips the test where there is no such Python."""
    if not PYTHON.exists():
        pytest.skip("no Python with the extra app: make build/app")


class Window:
    """A running window. temporary: where its files lie, and nothing else's."""

    def __init__(self, engines: Sequence[Path], temporary: Path, *options: str) -> None:
        needs_the_extra()
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        # Of the installed package, as people have it.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(PYTHON), "-m", "intsr", "app", *map(str, engines), "--json", *options],
            env=inherited | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        self.url = json.loads(line)["url"].rstrip("/")

    def ask(
        self,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body."""
        request = urllib.request.Request(self.url + path, data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit code, and what was said."""
        self._process.send_signal(number)
        _, said = self._process.communicate(timeout=60)
        return self._process.returncode, said

    def close(self) -> None:
        if self._process.poll() is None:
            self.end()


@contextmanager
def watched_browser(profile: Path) -> Iterator[Browser]:
    """Asserts at its end that nothing failed on the pages, and that they asked nobody but this machine."""
    opened = open_browser(profile)
    try:
        yield opened
        failed = opened.ever("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        asked = {event["request"]["url"] for event in opened.ever("Network.requestWillBeSent")}
    finally:
        opened.close()
    assert failed == []
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:", "about:"))}
    assert hosts == {"127.0.0.1"} and len(asked) > 5


def opened(browser: Browser, window: Window, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
    browser.open(window.url, size, scheme)
    browser.wait("document.querySelector('.drop')")


def press(browser: Browser, name: str) -> None:
    """A button, once it can be pressed."""
    button = BUTTON.format(name)
    browser.wait(f"{button} && !{button}.disabled")
    browser.run(f"{button}.click()")


def bring(browser: Browser, *paths: Path) -> None:
    before = browser.run("document.querySelectorAll('.queue li').length")
    browser.choose(".drop input", *paths)
    browser.wait(STILL.format(before + len(paths)))


def rows(browser: Browser) -> list[tuple[str, str]]:
    """Kind and text of each picture."""
    found = browser.run("[...document.querySelectorAll('.queue li')].map((i) => [i.className, i.innerText])")
    return [(kind, text) for kind, text in found]


def downloaded(browser: Browser, selector: str) -> bytes:
    """What the link gives, through the page."""
    numbers = browser.call(
        "Runtime.evaluate",
        expression=f"""fetch(document.querySelector({json.dumps(selector)}).href)
          .then((a) => a.arrayBuffer()).then((b) => [...new Uint8Array(b)])
          .then((b) => b.map((n) => n.toString(16).padStart(2, "0")).join(""))""",
        awaitPromise=True,
        returnByValue=True,
    )["result"]["value"]
    return bytes.fromhex(numbers)


def upscaled(engine: Path, path: Path, output: Path) -> bytes:
    """What the command makes of it, in the same Python."""
    command = [str(PYTHON), "-m", "intsr", "upscale", str(engine), str(path), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output.read_bytes()
