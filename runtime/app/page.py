"""The page, in Gradio: settings, the list of pictures, and what buttons do.

Gradio reads the environment when it is imported: import this when `serve` has set it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from intsr.errors import IntsrError
from intsr.runtime.app.choice import Choice
from intsr.runtime.app.session import Session, Sessions, first_settings
from intsr.runtime.app.studio import Studio, is_wanted
from intsr.runtime.app.words import PREFIX, facts_html, queue_html, summary_html
from intsr.runtime.batch.naming import OUTPUT_FORMATS, SAME_FORMAT
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES
from intsr.types import COLOR_FIXES

STATIC = Path(__file__).parent / "static"
_TIMES = (1.5, 2, 3, 4, 6, 8)
_LOOK_AGAIN_S, _STILL_HERE_S = 0.5, 60.0
_HEAD = """<div class="intsr-head"><h1>IntSR</h1><p>Sharper, larger pictures. They stay on this machine.</p>
<button data-theme-switch aria-label="Light or dark">◐</button></div>"""
_DROP = """<div class="drop" data-url="{url}" data-suffixes="{suffixes}"><p>Drop pictures or a folder here</p>
<label>Choose pictures<input type="file" multiple accept="{accept}"></label>
<label>Choose a folder<input type="file" webkitdirectory></label>
<p class="drop-state" role="status"></p><ul class="refused" role="alert"></ul></div>"""


def script() -> str:
    """What the page's head has to hold."""
    return f"<script>{(STATIC / 'viewer.js').read_text(encoding='utf-8')}</script>"


def page(choices: Mapping[str, Choice], sessions: Sessions, studio: Studio) -> Any:
    """Return the `gradio.Blocks`."""
    times = sorted({*_TIMES, *(choice.manifest.upscale_factor for choice in choices.values())})

    def state(session: Session) -> dict[Any, Any]:
        """All that may have changed."""
        busy = session.is_busy
        with session.lock:
            pictures = list(session.pictures.values())
        wanted = any(is_wanted(picture, session.settings) for picture in pictures)
        return {
            queue: queue_html(session, studio),
            summary: summary_html(session, studio),
            start: gr.Button(interactive=wanted and not busy),
            cancel: gr.Button(interactive=busy and not session.stopping),
            clear: gr.Button(interactive=bool(pictures) and not busy),
            # Now and then at least: a browser that is not heard of is forgotten.
            timer: gr.Timer(_LOOK_AGAIN_S if busy or not studio.knows(session.settings.engine) else _STILL_HERE_S),
        }

    def opened(token: str) -> dict[Any, Any]:
        """A browser that comes, or comes again."""
        session = sessions.find(token) or sessions.open()
        studio.measure(session.settings.engine)
        settings = session.settings
        url = f"{PREFIX}/pictures/{session.token}"
        accept = ",".join(PICTURE_SUFFIXES)
        return state(session) | {
            kept: session.token,
            drop: _DROP.format(url=escape(url), suffixes=" ".join(PICTURE_SUFFIXES), accept=accept),
            engine: settings.engine,
            scale: settings.outscale,
            color_fix: settings.color_fix,
            output_format: settings.output_format,
            facts: facts_html(choices[settings.engine]),
        }

    def found(token: str) -> Session:
        session = sessions.find(token)
        if session is None:
            raise gr.Error("This page has ended. Load it again.", duration=None, print_exception=False)
        return session

    def looked(token: str) -> dict[Any, Any]:
        session = sessions.find(token)
        # The first look may come before the page knows its token.
        return state(session) if session is not None else {timer: gr.skip()}

    def engine_changed(token: str, name: str) -> dict[Any, Any]:
        session = found(token)
        with session.lock:
            session.settings = replace(first_settings(choices[name]), output_format=session.settings.output_format)
        studio.measure(name)
        settings = session.settings
        changed = {scale: settings.outscale, color_fix: settings.color_fix, facts: facts_html(choices[name])}
        return state(session) | changed

    def changed(token: str, times: float, fix: str, kind: str) -> dict[Any, Any]:
        session = found(token)
        settings = replace(session.settings, outscale=float(times), color_fix=fix, output_format=kind)
        try:
            settings.options()
        except IntsrError as error:
            raise gr.Error(str(error), print_exception=False) from error
        with session.lock:
            session.settings = settings
        return state(session)

    def started(token: str) -> dict[Any, Any]:
        session = found(token)
        studio.start(session)
        return state(session)

    def stopped(token: str) -> dict[Any, Any]:
        session = found(token)
        studio.stop(session)
        return state(session)

    def removed(token: str, event: gr.EventData) -> dict[Any, Any]:
        session = found(token)
        picture = session.pictures.get(event.number)
        if picture is not None:
            session.remove(picture)
        return state(session)

    def cleared(token: str) -> dict[Any, Any]:
        session = found(token)
        for picture in session.with_status("waiting", "done", "failed", "stopped"):
            session.remove(picture)
        return state(session)

    def html(name: str) -> dict[str, Any]:
        return {"js_on_load": (STATIC / name).read_text(encoding="utf-8")}

    with gr.Blocks(title="IntSR", analytics_enabled=False) as blocks:
        kept = gr.BrowserState("", storage_key="intsr-app")
        timer = gr.Timer(_LOOK_AGAIN_S)
        gr.HTML(_HEAD)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                drop = gr.HTML("", **html("drop.js"))
                summary = gr.HTML("")
                with gr.Row():
                    start = gr.Button("Upscale", variant="primary", interactive=False, min_width=80)
                    cancel = gr.Button("Cancel", interactive=False, min_width=80)
                    clear = gr.Button("Clear", interactive=False, min_width=80)
                queue = gr.HTML("", **html("queue.js"))
            with gr.Column(scale=2, min_width=300):
                engine = gr.Dropdown(list(choices), label="Engine", interactive=True)
                scale = gr.Dropdown(
                    [(f"x{value:g}", float(value)) for value in times], label="Scale", interactive=True
                )
                color_fix = gr.Dropdown(list(COLOR_FIXES), label="Colour fix", interactive=True)
                formats = [("as the picture's", SAME_FORMAT), *((item, item) for item in OUTPUT_FORMATS[1:])]
                output_format = gr.Dropdown(formats, label="Format", interactive=True)
                with gr.Accordion("About this engine", open=False):
                    facts = gr.HTML("")

        shown = [queue, summary, start, cancel, clear, timer]
        settings = [scale, color_fix, output_format]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # Of several at once the last one counts, and is never dropped.
        last = quiet | {"trigger_mode": "always_last"}
        blocks.load(opened, [kept], [*shown, *settings, kept, drop, engine, facts], **quiet)
        timer.tick(looked, [kept], shown, trigger_mode="once", **quiet)
        drop.upload(looked, [kept], shown, **last)
        queue.remove(removed, [kept], shown, **quiet)
        engine.input(engine_changed, [kept, engine], [*shown, scale, color_fix, facts], **last)
        for setting in settings:
            setting.input(changed, [kept, *settings], shown, **last)
        for button, done in ((start, started), (cancel, stopped), (clear, cleared)):
            button.click(done, [kept], shown, **quiet)
    blocks.queue(api_open=False, default_concurrency_limit=8)
    return blocks
