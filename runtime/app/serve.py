"""The window from its beginning to its end, when nothing of it is left."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from intsr.errors import UsageError
from intsr.files import try_lock
from intsr.runtime.app.choice import Choice, engines_from_paths
from intsr.runtime.app.guard import Guard
from intsr.runtime.app.routes import RefusedError, refused, routes
from intsr.runtime.app.session import Sessions, first_settings
from intsr.runtime.app.studio import Studio

_PREFIX = "intsr-app-"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class AppOptions:
    """host, port: where it listens; port None for the first that is free from 7860 on. share: ask Gradio for a public
    link. threads, memory_bytes: as of `intsr upscale`.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    threads: int | None = None
    memory_bytes: int | None = None


@contextmanager
def opened_app(
    engines: Sequence[Path], options: AppOptions, say: Callable[[str], object]
) -> Iterator[tuple[str, str]]:
    """Serve until the context is left; yields its address and, with `share`, the public one, else "".

    All of its files lie in one temporary folder, which is deleted when the context is left, however that happens.
    Raises UsageError, and what is wrong with an engine that was named.
    """
    guard = {"hosts": _hosts(options, _address(options)), "is_shared": options.share}
    choices = engines_from_paths(engines, say)
    with _own_folder() as folder:
        _set_environment(folder)
        with _past_proxies(options):
            from intsr.runtime.app.page import page

        sessions = Sessions(folder, first_settings(next(iter(choices.values()))))
        studio = Studio(choices, sessions, options.threads, options.memory_bytes, say)
        try:
            blocks = page(choices, sessions, studio)
            try:
                # What Gradio has to say is for people; stdout is for programs.
                with redirect_stdout(sys.stderr), _past_proxies(options):
                    local, public = _launched(blocks, options, routes(sessions, _reports(choices, folder)), guard)
                if options.share and not public:
                    raise UsageError("--share", "Gradio's servers gave no public link", fix="leave it out")
                yield local, public
            finally:
                blocks.close(verbose=False)
        finally:
            studio.close()


def _launched(blocks: Any, options: AppOptions, own: Sequence[Any], guard: Mapping[str, object]) -> tuple[str, str]:
    """Begin to serve; return the address here and the public one, if any. own: routes beside Gradio's. guard: what
    `Guard` is to know.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from intsr.runtime.app.page import STATIC, script

    # Of the system: Gradio's usual ones come from elsewhere.
    fonts = {"font": ("ui-sans-serif", "system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    # White on the usual blue is hard to read.
    blue = {f"button_primary_background_fill{kind}": "*primary_600" for kind in ("", "_dark")}
    theme = gr.themes.Default(primary_hue="blue", **fonts).set(**blue)
    try:
        _, local, public = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=(STATIC / "page.css").read_text(encoding="utf-8"),
            head=script(),
            app_kwargs={
                "routes": list(own),
                "middleware": [Middleware(Guard, **guard)],
                "exception_handlers": {RefusedError: refused},
                **dict.fromkeys(("docs_url", "redoc_url", "openapi_url")),
            },
        )
    except OSError as error:
        raise _cannot_listen(options, str(error)) from error
    return local, public or ""


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A temporary folder, locked while it is used; what killed ones have left goes before."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Its owner's alone may be opened.
        with suppress(OSError), _locked(left) as is_free:
            if is_free:
                shutil.rmtree(left)
    while True:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
            try:
                is_mine = stack.enter_context(_locked(folder))
            except FileNotFoundError:
                is_mine = False
            # Else another window that begins has taken it for one that was left.
            if is_mine:
                yield folder
                return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Tell whether nobody else had it locked. Raises OSError where it cannot be opened, and for a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def _set_environment(folder: Path) -> None:
    """What Gradio reads when it is imported."""
    # Meant for another program of Gradio: a path before all addresses, a port, and to wait where it begins.
    for name in ("GRADIO_ROOT_PATH", "GRADIO_SERVER_PORT", "GRADIO_DEBUG"):
        os.environ.pop(name, None)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Nor does what it brings along ask for anything.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def _past_proxies(options: AppOptions) -> Iterator[None]:
    """Have Gradio ask its own address, as it does when it begins, without the proxy that is set for others.

    Browsers that are opened later get the environment as it was.
    """
    before = os.environ.get("no_proxy")
    given = before or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join((given, *_LOOPBACK, options.host)) if options.share else "*"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        if before is not None:
            os.environ["no_proxy"] = before


def _address(options: AppOptions) -> str:
    """Return the IPv4 address of the host. Raises UsageError where this machine cannot listen there.

    Gradio would try a hundred ports, for minutes.
    """
    try:
        address = str(socket.getaddrinfo(options.host, None, socket.AF_INET)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise UsageError("--host", f"{options.host}: {error}", "an IPv4 address or a name of this machine") from error
    try:
        socket.create_server((address, options.port or 0)).close()
    except OSError as error:
        raise _cannot_listen(options, os.strerror(error.errno or 0)) from error
    return address


def _cannot_listen(options: AppOptions, why: str) -> UsageError:
    fix = "choose another --host or --port"
    return UsageError(f"{options.host}:{options.port or 'any port'}", why, fix=fix)


def _hosts(options: AppOptions, address: str) -> tuple[str, ...]:
    """By which names requests may ask for this machine: any, where others are to come in."""
    alone = ip_address(address).is_loopback and not options.share
    return (*_LOOPBACK, options.host.lower()) if alone else ()


def _reports(choices: dict[str, Choice], folder: Path) -> dict[str, Path]:
    """Copies: nothing outside of the folder is served."""
    copies = {}
    for number, choice in enumerate(choices.values()):
        if choice.report is not None:
            copies[choice.name] = Path(shutil.copyfile(choice.report, folder / f"report-{number}.html"))
    return copies


def wait() -> None:
    """Until a signal raises an exception here."""
    while True:
        time.sleep(3600)
