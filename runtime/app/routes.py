"""Pictures in and out over HTTP, beside Gradio's own routes: streamed, and only those of a session's own folder.

A path is never taken from a request: pictures have numbers, sessions tokens that nobody can guess.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from io import RawIOBase
from pathlib import Path
from urllib.parse import quote

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from intsr.errors import IntsrError, UsageError
from intsr.runtime.app.session import Picture, Session, Sessions
from intsr.runtime.app.words import PREFIX
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_header, read_image
from intsr.runtime.pictures.writer import open_writer

# What browsers show themselves; the others are shown as PNG. By what the file is, not by its name.
_SHOWN = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp", "AVIF": "image/avif", "BMP": "image/bmp"}
# Beyond this a browser gives up, or takes gigabytes.
MOST_SHOWN_PX = 150_000_000
_SPARE_BYTES = 256 << 20
_NEVER_CACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_ZIP_CHUNK_BYTES = 1 << 20


class RefusedError(HTTPException):
    """Why there is no such thing, in words that the page shows."""


def refused(_: Request, error: Exception) -> Response:
    """Answer with the words alone: Gradio's own answers are JSON."""
    assert isinstance(error, RefusedError)
    return PlainTextResponse(error.detail, error.status_code)


def routes(sessions: Sessions, reports: Mapping[str, Path]) -> list[Route]:
    """reports: pages that may be asked for, by the name of their engine."""

    def found(request: Request) -> tuple[Session, Picture]:
        session = sessions.find(request.path_params["token"])
        picture = session.pictures.get(request.path_params["number"]) if session else None
        if session is None or picture is None:
            raise RefusedError(404, "no such picture")
        return session, picture

    async def add(request: Request) -> Response:
        session = sessions.find(request.path_params["token"])
        if session is None:
            raise RefusedError(404, "this page has ended: load it again")
        try:
            picture = session.add(request.query_params.get("name", ""))
        except UsageError as error:
            return PlainTextResponse(str(error), 400)
        try:
            await _received(request, picture)
        except ClientDisconnect:
            shutil.rmtree(picture.source.parent, ignore_errors=True)
            return Response(status_code=400)
        except BaseException:
            shutil.rmtree(picture.source.parent, ignore_errors=True)
            raise
        await run_in_threadpool(session.keep, picture)
        return PlainTextResponse(str(picture.number))

    def result(request: Request) -> Response:
        session, picture = found(request)
        name = next((name for name, done in session.results() if done is picture), None)
        if name is None or picture.result is None:
            raise RefusedError(404, "not made yet")
        return FileResponse(picture.result, headers=_NEVER_CACHED | _attachment(name.rpartition("/")[2]))

    def view(request: Request) -> Response:
        _, picture = found(request)
        path = picture.source if request.path_params["side"] == "before" else picture.result
        if path is None:
            raise RefusedError(404, "not made yet")
        try:
            path, kind = _shown(path)
        except IntsrError as error:
            raise RefusedError(415, str(error).replace(str(path), picture.name)) from error
        return FileResponse(path, media_type=kind, headers=_NEVER_CACHED)

    def everything(request: Request) -> Response:
        session = sessions.find(request.path_params["token"])
        done = [(name, picture.result) for name, picture in session.results() if picture.result] if session else []
        if not done:
            raise RefusedError(404, "nothing is made yet")
        return StreamingResponse(
            zipped(done), media_type="application/zip", headers=_NEVER_CACHED | _attachment("intsr.zip")
        )

    def report(request: Request) -> Response:
        page = reports.get(request.path_params["engine"])
        if page is None:
            raise RefusedError(404, "no report lies beside this engine")
        return FileResponse(page, media_type="text/html", headers=_NEVER_CACHED)

    def route(path: str, endpoint: Callable[[Request], object], method: str = "GET") -> Route:
        return Route(PREFIX + path, endpoint, methods=[method])

    return [
        route("/pictures/{token}", add, "POST"),
        route("/result/{token}/{number:int}", result),
        route("/view/{token}/{number:int}/{side}", view),
        route("/all/{token}", everything),
        route("/report/{engine:path}", report),
    ]


async def _received(request: Request, picture: Picture) -> None:
    """Write what is sent. Raises RefusedError where the disk has no room for it."""
    room = shutil.disk_usage(picture.source.parent).free - _SPARE_BYTES
    promised, got = int(request.headers.get("content-length") or 0), 0
    if promised > room:
        raise RefusedError(413, f"{picture.name}: the disk has no room for it")
    with picture.source.open("xb") as file:
        async for part in request.stream():
            got += len(part)
            if got > room:
                raise RefusedError(413, f"{picture.name}: the disk has no room for it")
            await run_in_threadpool(partial(file.write, part))


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}


def _shown(path: Path) -> tuple[Path, str]:
    """Return a file that a browser shows, and its kind. Raises ImageError, UsageError."""
    header = read_header(path)
    if header.width_px * header.height_px > MOST_SHOWN_PX:
        got = f"{header.width_px}x{header.height_px} pixels"
        raise UsageError(path, got, f"at most {MOST_SHOWN_PX // 10**6} million to be shown here", "download it")
    if header.format in _SHOWN:
        return path, _SHOWN[header.format]
    shown = path.with_name(f"shown-{path.stem}.png")
    if not shown.exists():
        image = read_image(header)
        height_px, width_px = image.pixels.shape[:2]
        channels = 1 if image.pixels.ndim == 2 else 3
        pixels = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
        metadata = replace(ImageMetadata(), icc_profile=image.metadata.icc_profile)
        writer = open_writer(
            shown, width_px, height_px, channels, pixels.dtype, has_alpha=image.alpha is not None, metadata=metadata
        )
        with writer as picture:
            picture.write(pixels)
    return shown, _SHOWN["PNG"]


class _Parts(RawIOBase):
    """What is written since it was last taken; no place to go back to."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._held += view
        return view.nbytes

    def take(self) -> bytes:
        taken, self._held = bytes(self._held), bytearray()
        return taken


def zipped(files: list[tuple[str, Path]]) -> Generator[bytes]:
    """Yield a ZIP of files under these names as it grows: it lies nowhere. Pictures are stored as they are."""
    parts = _Parts()
    with zipfile.ZipFile(parts, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            info = zipfile.ZipInfo.from_file(path, name)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(_ZIP_CHUNK_BYTES):
                    target.write(chunk)
                    yield parts.take()
    yield parts.take()
