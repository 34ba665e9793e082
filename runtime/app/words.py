"""What the window shows of a session, as HTML. All that people or files named is escaped."""

from __future__ import annotations

import time
from html import escape
from urllib.parse import quote

from intsr.cli.console import duration
from intsr.errors import IntsrError
from intsr.runtime.app.choice import Choice
from intsr.runtime.app.session import Picture, Plan, Session
from intsr.runtime.app.studio import Studio, is_wanted

# Of all addresses that are ours, not Gradio's.
PREFIX = "/intsr"
# From here on a picture's own speed says how long the rest takes.
_KNOWN_SHARE = 0.1


def queue_html(session: Session, studio: Studio) -> str:
    """Every picture of a session: what it is, what it takes, how far it is, and what can be done with it."""
    with session.lock:
        pictures = list(session.pictures.values())
    names = {picture.number: name for name, picture in session.results()}
    items = "".join(_item(session, studio, picture, names.get(picture.number, "")) for picture in pictures)
    return f'<ul class="queue" aria-label="Pictures">{items}</ul>' if items else ""


def _item(session: Session, studio: Studio, picture: Picture, result: str) -> str:
    kind, lines = picture.status, list[str]()
    at = f"{session.token}/{picture.number}"
    acts = f'<button data-remove="{picture.number}" aria-label="Remove {escape(picture.name)}">Remove</button>'
    if picture.header is None:
        return _row("failed", picture.name, [_error(picture, picture.unreadable)], acts)
    settings = picture.settings if picture.settings and kind != "waiting" else session.settings
    try:
        plan = studio.plan(picture, settings)
    except IntsrError as error:
        return _row("failed", picture.name, [_error(picture, picture.renamed(str(error), settings))], acts)
    size = f"{picture.header.width_px}×{picture.header.height_px} → {plan.width}×{plan.height}"
    if kind == "running":
        # How far it is stands in the summary: what changes all the time takes buttons from under the mouse.
        lines.append(_what(f"{size}, being made"))
        acts = ""
    elif kind == "done":
        lines.append(_what(f"{size}, {_bytes(picture.result_bytes)} in {duration(picture.seconds)}"))
        view = f"{PREFIX}/view/{at}"
        compare = (
            f'<button data-compare data-before="{view}/before" data-after="{view}/after?{picture.batch}" '
            f'data-width="{plan.width}" data-height="{plan.height}" data-name="{escape(picture.name)}">'
            "Compare</button>"
        )
        download = f'<a class="do" href="{PREFIX}/result/{at}" download title="{escape(result)}">Download</a>'
        acts = compare + download + acts
    elif kind == "failed":
        lines.append(_what(size))
    else:
        lines.append(_what(f"{size}, {_takes(plan)}{', in the queue' if kind == 'queued' else ''}"))
    lines += [_error(picture, picture.error)] * bool(picture.error)
    lines += [f'<span class="note wide">{escape(note)}</span>' for note in picture.notes]
    if kind == "stopped":
        lines.append('<span class="note wide">cancelled</span>')
    return _row(kind, picture.name, lines, acts)


def summary_html(session: Session, studio: Studio) -> str:
    """One line of it all: what it will take, or how long it still takes."""
    problem = studio.problems.get(session.settings.engine, "")
    with session.lock:
        pictures = list(session.pictures.values())
    wanted, busy = _planned(session, studio, False), _planned(session, studio, True)
    done = sum(1 for _ in session.results())
    parts = list[str]()
    if busy:
        others = studio.ahead(session)
        parts.append(f"{len(busy)} to go, {_left(busy, studio)}")
        parts += [f"taking turns with {others} other browser{'s' * (others > 1)}"] * bool(others)
    elif wanted and not problem:
        parts.append(f"{len(wanted)} picture{'s' * (len(wanted) > 1)} to make: {_together(session, wanted, studio)}")
    failed = sum(not picture.header or picture.status == "failed" for picture in pictures)
    parts += [f"{done} done"] * bool(done) + [f"{failed} failed"] * bool(failed)
    zipped = (
        f'<a class="intsr-all" href="{PREFIX}/all/{session.token}" download>Download all {done} (ZIP)</a>'
        if done > 1
        else ""
    )
    text = "; ".join(parts) or "Pictures stay on this machine."
    far = _progress_html(session, busy) if busy else ""
    why = f'<p class="intsr-error" role="alert">{escape(problem)}</p>' if problem else ""
    return f'<div class="intsr-sum">{why}<p role="status">{escape(text)}</p>{zipped}{far}</div>'


def _progress_html(session: Session, busy: list[tuple[Picture, Plan]]) -> str:
    """How far all that was asked for is, by tiles, and which picture is being made."""
    made = [picture for picture in session.with_status("done") if picture.batch == session.batch]
    done = sum(picture.tiles for picture in made) + sum(picture.tiles_done for picture, _ in busy)
    share = done / (sum(picture.tiles for picture in made) + sum(plan.tiles for _, plan in busy))
    running = next((picture for picture, _ in busy if picture.status == "running"), None)
    of = f"tile {min(running.tiles_done + 1, running.tiles)} of {running.tiles}" if running and running.tiles else ""
    text = f'<p class="far">{escape(running.name)}: {of or "starting"}</p>' if running else ""
    return f'<progress max="1" value="{share:.3f}" aria-label="How far it is"></progress>{text}'


def facts_html(choice: Choice) -> str:
    """What an engine is, and the way to its report."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in choice.facts().items())
    address = f"{PREFIX}/report/{quote(choice.name)}"
    link = f'<p><a class="intsr-all" href="{address}" target="_blank">Open its report</a></p>'
    page = link if choice.report is not None else ""
    return f'{page}<dl class="intsr-facts">{rows}</dl>'


def _planned(session: Session, studio: Studio, busy: bool) -> list[tuple[Picture, Plan]]:
    """Pictures that are being made, or would be, and what they take; those that cannot be read are none of them."""
    with session.lock:
        pictures = list(session.pictures.values())
    found = []
    for picture in pictures:
        settings = picture.settings if busy else session.settings
        if busy != (picture.status in ("queued", "running")) or settings is None:
            continue
        if not busy and not is_wanted(picture, settings):
            continue
        try:
            found.append((picture, studio.plan(picture, settings)))
        except IntsrError:
            continue
    return found


def _left(busy: list[tuple[Picture, Plan]], studio: Studio) -> str:
    seconds = studio.opening_s((p.settings.engine, plan.tile_px) for p, plan in busy if p.settings is not None)
    for picture, plan in busy:
        if plan.seconds is None:
            return "the engine is being opened"
        share = picture.tiles_done / picture.tiles if picture.status == "running" and picture.tiles else 0.0
        # Once there is something to go by, the picture itself knows best.
        whole = (time.monotonic() - picture.started) / share if share >= _KNOWN_SHARE else plan.seconds
        seconds += whole * (1 - share)
    return f"about {duration(seconds)} left"


def _together(session: Session, wanted: list[tuple[Picture, Plan]], studio: Studio) -> str:
    """Times add up; memory is the largest one's, as they are made one after the other."""
    plans = [plan for _, plan in wanted]
    seconds = [plan.seconds for plan in plans if plan.seconds is not None]
    if len(seconds) < len(plans):
        return "the engine is being opened and measured"
    seconds.append(studio.opening_s((session.settings.engine, plan.tile_px) for plan in plans))
    most = max(plan.memory_bytes or 0 for plan in plans)
    return f"about {duration(sum(seconds))} and {_bytes(most)} of memory"


def _takes(plan: Plan) -> str:
    tiles = f"{plan.tiles} tile{'s' * (plan.tiles > 1)}"
    if plan.seconds is None or plan.memory_bytes is None:
        return tiles
    return f"{tiles}, about {duration(plan.seconds)}, {_bytes(plan.memory_bytes)} of memory"


def _row(kind: str, name: str, lines: list[str], acts: str) -> str:
    what, *more = lines
    return (
        f'<li class="{kind}"><span class="who">{escape(name)}</span>{what}<span class="acts">{acts}</span>'
        f"{''.join(more)}</li>"
    )


def _what(text: str) -> str:
    return f'<span class="what">{escape(text)}</span>'


def _error(picture: Picture, text: str) -> str:
    """Its name stands above it."""
    return f'<span class="error wide">{escape(text.removeprefix(f"{picture.name}: "))}</span>'


def _bytes(size: int) -> str:
    power = 3 if size >= 1e9 else 2 if size >= 1e6 else 1
    number = size / 1000**power
    return f"{number:.{0 if number >= 10 else 1}f} {('kB', 'MB', 'GB')[power - 1]}"
