"""The window, asked as nobody should, and what is left when it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from app_pictures import write_huge_header
from browser import Browser
from PIL import Image
from windows import (
    BUTTON,
    PYTHON,
    Window,
    bring,
    opened,
    press,
    rows,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(make_engine) -> Path:  # type: ignore[no-untyped-def]
    return make_engine("cpu")


def token_of(window: Window, browser: Browser) -> str:
    opened(browser, window)
    return str(browser.run("document.querySelector('.drop').dataset.url")).rpartition("/")[2]


def test_what_must_be_refused(
    browser: Browser, window: Window, engine: Path, photo_path: Path, tmp_path: Path
) -> None:
    token = token_of(window, browser)
    folder = max(window.temporary.glob("intsr-app-*/session-*"), key=lambda path: path.stat().st_ctime_ns)
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody's business")
    link = folder / "link.png"
    link.symlink_to(secret)
    paths = [
        *(f"/gradio_api/file={path}" for path in ("/etc/passwd", secret, link, engine)),
        *("/gradio_api/file=http://127.0.0.1:9/", "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/upload"),
        *("/gradio_api/info", "/gradio_api/call/started", "/docs", "/openapi.json", "/monitoring"),
        *(f"/static/..%2f..%2f..%2f{quote(str(secret))}", f"/assets/%2e%2e/%2e%2e/{quote(str(secret))}"),
        *(
            f"/intsr/result/{token}/..%2f..%2f1",
            f"/intsr/view/{token}/link.png/before",
            f"/intsr/view/{token}/1/before",
        ),
        *("/intsr/view/other/1/before", "/intsr/all/other", f"/intsr/all/{token}", "/intsr/report/identity"),
        f"/intsr/report/..%2f..%2f{quote(str(secret))}",
    ]
    for path in paths:
        status, body = window.ask(path)
        assert status in (400, 403, 404, 405) and b"business" not in body and b"root:" not in body, (path, status)
    for name in ("../a.png", "a/../../a.png", "/etc/a.png", "a\\b.png", "", "."):
        status, body = window.ask(f"/intsr/pictures/{token}?name={quote(name, safe='')}", photo_path.read_bytes())
        assert status == 400 and b"is no name that a picture may have here" in body, name
    # In words that the page shows as they are.
    assert window.ask("/intsr/pictures/other?name=a.png", b"1") == (404, b"this page has ended: load it again")
    promised = {"Content-Length": str(10**15)}
    answer = window.ask(f"/intsr/pictures/{token}?name=a.png", b"1", promised)
    assert answer == (413, b"a.png: the disk has no room for it")
    # Another page, and another name for this machine.
    for headers in (
        *({"Host": host} for host in ("evil.example", "evil.example:7860", "evil.example@127.0.0.1", "[", "[::1")),
        *({"Origin": origin} for origin in ("http://evil.example", "http://[", "null")),
        {"Origin": "http://localhost:1", "X-Forwarded-Host": "localhost:1"},
    ):
        assert window.ask("/", headers=headers)[0] == 403
        assert window.ask(f"/intsr/pictures/{token}?name=a.png", photo_path.read_bytes(), headers)[0] == 403
    # What would make Gradio fetch a file or an address.
    for value in ({"path": str(secret), "meta": {"_type": "gradio.FileData"}}, [str(secret)], {"url": "http://a/"}):
        body = json.dumps({"data": [value], "fn_index": 0, "session_hash": "a"}).encode()
        kind = {"Content-Type": "application/json"}
        assert window.ask("/gradio_api/queue/join", body, kind)[0] == 403
    assert window.ask("/gradio_api/queue/join", b"{" * 100, {"Content-Type": "application/json"})[0] == 403
    assert [path.name for path in folder.iterdir()] == ["link.png"]


def test_what_is_no_picture(browser: Browser, window: Window, tmp_path: Path) -> None:
    opened(browser, window)
    (tmp_path / "text.png").write_text("a letter")
    bring(browser, tmp_path / "text.png", write_huge_header(tmp_path / "huge.png"))
    (text, text_says), (huge, huge_says) = rows(browser)
    assert text == huge == "failed"
    assert text_says.startswith("text.png\nnot a picture, whatever its name says; expected a PNG, JPEG, WebP,")
    assert huge_says.startswith("huge.png\nmore pixels than the limit; expected at most 178956970 pixels;")
    assert browser.run(f"{BUTTON.format('Upscale')}.disabled")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_nothing_is_left(browser: Browser, engine: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    window = Window([engine], tmp_path / "temporary")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    try:
        opened(browser, window)
        bring(browser, tmp_path / "a.png")
        press(browser, "Upscale")
        browser.wait("document.querySelector('.intsr-sum progress')?.value > 0.01")
        assert list(window.temporary.rglob("source.png"))
        browser.open("about:blank")
        assert window.end(number)[0] == code
    finally:
        window.close()
    assert list(window.temporary.iterdir()) == []


def test_what_a_killed_one_left_goes_with_the_next(engine: Path, tmp_path: Path) -> None:
    first = Window([engine], tmp_path / "temporary")
    living = Window([engine], tmp_path / "temporary")
    try:
        first.end(signal.SIGKILL)
        assert len(list(living.temporary.iterdir())) == 2
        (tmp_path / "temporary" / "intsr-app-link").symlink_to(tmp_path)
        living_folders = len(list(living.temporary.glob("intsr-app-*/gradio")))
        third = Window([engine], tmp_path / "temporary")
        assert third.ask("/")[0] == living.ask("/")[0] == 200
        assert len(list(living.temporary.glob("intsr-app-*/gradio"))) == living_folders
        assert third.end()[0] == 130
        assert (tmp_path / "temporary" / "intsr-app-link").is_symlink()
    finally:
        first.close()
        living.close()


def test_a_port_that_is_taken_and_no_engine(engine: Path, window: Window, tmp_path: Path) -> None:
    port = str(urlsplit(window.url).port)
    for arguments, said in (
        ([str(engine), "--port", port], f"127.0.0.1:{port}: "),
        # Not of this machine (RFC 5737), and no name at all.
        ([str(engine), "--host", "192.0.2.1"], "192.0.2.1:any port: "),
        ([str(engine), "--host", "a..b"], "--host: a..b: "),
        ([str(tmp_path / "none.engine")], "none.engine: no such file"),
        ([], "no engine was given, and compiling the demonstration: torch is not installed"),
    ):
        command = [str(PYTHON), "-m", "intsr", "app", *arguments]
        environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert run.returncode == 2 and said in run.stderr and run.stderr.count("\n") == 1, run.stderr


def test_what_is_set_for_other_programs(engine: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Nobody listens there, and nothing here speaks SOCKS.
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("all_proxy", "socks5://127.0.0.1:9")
        patch.setenv("GRADIO_ROOT_PATH", "/elsewhere")
        patch.setenv("GRADIO_SERVER_PORT", "9")
        patch.setenv("GRADIO_DEBUG", "1")
        window = Window([engine], tmp_path / "temporary")
    try:
        assert window.ask("/config")[0] == 200
    finally:
        window.close()


def test_another_page_is_refused_where_the_network_is_let_in(engine: Path, tmp_path: Path) -> None:
    window = Window([engine], tmp_path / "temporary", "--host", "0.0.0.0")
    try:
        # As a telephone in the same network asks, and as a page elsewhere has its browser ask.
        phone = {"Host": "192.0.2.1:7860", "Origin": "http://192.0.2.1:7860"}
        assert window.ask("/", headers=phone)[0] == 200
        evil = phone | {"Origin": "http://evil.example", "X-Forwarded-Host": "evil.example"}
        assert window.ask("/", headers=evil) == (403, b"another page asks")
    finally:
        window.close()
