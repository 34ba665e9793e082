"""What is let in: requests for this window alone, from this window alone; Gradio serves more than that.

Gradio fetches addresses that a request names (`file=http://...`), serves files by their path, and has pages for other
programs. None of it is needed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALLOWED = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(?:assets|static|svelte)/[^\0]+)"
    r"|/gradio_api/(?:queue/join|queue/data|heartbeat/\w+|startup-events|app_id|theme\.css|cancel)/?"
    r"|/intsr/[^\0]+"
)
_HOST = re.compile(r"(.+?)(?::\d+)?")
# What buttons and settings send; nothing of it is long.
_JOIN = "/gradio_api/queue/join"
_MOST_BYTES = 1 << 16
# A second lock: whatever a script on the page wants, the browser asks nobody else.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)


class Guard:
    """Middleware. hosts: names that this machine is called by; empty for any, where others are to come in. is_shared:
    requests may come by way of Gradio's public link.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], is_shared: bool) -> None:
        self._app, self._hosts, self._is_shared = app, hosts, is_shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if why := self._refused(request):
            await PlainTextResponse(why, 403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = ((b"content-security-policy", _POLICY), (b"referrer-policy", "no-referrer"))
                message["headers"] = [*message["headers"], *((name, value.encode()) for name, value in more)]
            await send(message)

        if request.scope["path"].rstrip("/") == _JOIN:
            body = await _read(request)
            if not _is_plain(body):
                await PlainTextResponse("not what this page asks", 403)(scope, receive, send)
                return
            receive = _again(body, receive)
        await self._app(scope, receive, guarded)

    def _refused(self, request: Request) -> str:
        """Why a request is not answered; "" for one that is."""
        host = request.headers.get("host", "")
        # A page elsewhere may give a name of its own this machine's address.
        named = _HOST.fullmatch(host)
        if self._hosts and (named is None or named[1].lower().strip("[]") not in self._hosts):
            return "this window is for this machine alone"
        origin = request.headers.get("origin")
        # Behind a public link the name that people see comes in a header of its own. Without one nobody is asked what
        # it says: Gradio lets other pages' browsers set it.
        names = (host, request.headers.get("x-forwarded-host") if self._is_shared else host)
        if origin is not None and origin.partition("://")[2] not in names:
            return "another page asks"
        if not _ALLOWED.fullmatch(request.scope["path"]):
            return "nothing is served here"
        return ""


async def _read(request: Request) -> bytes:
    """The body, or what is too much of it."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            break
    return body


def _is_plain(body: bytes) -> bool:
    """Tell whether values are texts and numbers: of an object with a path or an address, Gradio fetches the file."""
    try:
        values = json.loads(body)
        event = values.get("event_data") or {}
        return all(_is_value(item) for item in (*values["data"], *event.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_value(item: Any) -> bool:
    return item is None or isinstance(item, str | int | float)


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read to whoever is next."""
    given = False

    async def first() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first
