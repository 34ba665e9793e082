"""The one thread that has the engine: pictures of several browsers take turns in it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intsr.errors import IntsrError
from intsr.runtime.app.choice import Choice
from intsr.runtime.app.session import Picture, Plan, Session, Sessions, Settings
from intsr.runtime.backends.protocol import SessionOptions
from intsr.runtime.batch.files import FileReport
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.plan import cheapest_tile, picture_sizes, planned_picture
from intsr.runtime.batch.run import Batch
from intsr.runtime.engine import Engine, open_engine_with
from intsr.runtime.tiles.grid import Tile


class StoppedError(BaseException):
    """Somebody has asked for the end, between two tiles. As with Ctrl-C, no thread is left, and no report is made."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an engine was measured to take: opening it, and one tile of `engine.tile_px`, which was open then."""

    engine: Engine
    open_s: float
    tile_ms: float


class Studio:
    """Makes pictures of all sessions, one at a time; close it."""

    def __init__(
        self,
        choices: Mapping[str, Choice],
        sessions: Sessions,
        threads: int | None = None,
        memory_bytes: int | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._choices, self._sessions = choices, sessions
        self._threads, self._memory_bytes, self._say = threads, memory_bytes, say
        self._engine: tuple[str, Engine] | None = None
        self._costs: dict[str, Cost] = {}
        # Of engines that could not be opened, why.
        self.problems: dict[str, str] = {}
        self._unmeasured = list(choices)[:1]
        self._turn = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="intsr-app", daemon=True)
        self._thread.start()

    def measure(self, engine: str) -> None:
        """Have an engine opened and timed, if it was not and when there is time."""
        with self._changed:
            if engine not in self._costs and engine not in self._unmeasured:
                self._unmeasured.append(engine)
                self._changed.notify_all()

    def knows(self, engine: str) -> bool:
        """Tell whether an engine was measured, or could not be opened."""
        return engine in self._costs or engine in self.problems

    def start(self, session: Session) -> None:
        """Queue what is not made yet in the session's settings."""
        with session.lock:
            session.stopping, session.batch = False, session.batch + 1
            for picture in session.pictures.values():
                if is_wanted(picture, session.settings):
                    picture.status, picture.settings, picture.batch = "queued", session.settings, session.batch
                    picture.error, picture.notes, picture.tiles_done, picture.tiles = "", (), 0, 0
        with self._changed:
            self._changed.notify_all()

    def stop(self, session: Session) -> None:
        """End it between two tiles. What is done stays."""
        with session.lock:
            session.stopping = True
            for picture in session.with_status("queued"):
                picture.status = "stopped"

    def plan(self, picture: Picture, settings: Settings) -> Plan:
        """Say what a picture will take. Raises ImageError, UsageError, in the words for its own file."""
        cost = self._costs.get(settings.engine)
        if picture.planned is not None and picture.planned[:2] == (settings, cost):
            return picture.planned[2]
        plan = self._planned(picture, settings, cost)
        picture.planned = settings, cost, plan
        return plan

    def _planned(self, picture: Picture, settings: Settings, cost: Cost | None) -> Plan:
        job, options = picture.job(settings), settings.options(self._memory_bytes)
        manifest = self._choices[settings.engine].manifest
        tile_px = cheapest_tile(manifest, picture_sizes([job]))
        planned = planned_picture(job, manifest.at_tile(tile_px), options)
        if cost is None:
            return Plan(planned.width, planned.height, tile_px, planned.tiles, None, None)
        seconds = planned.tiles * cost.tile_ms * (tile_px / cost.engine.tile_px) ** 2 / 1e3
        memory_bytes = cost.engine.resident_bytes_at(tile_px) + MemoryBudget(cost.engine, options).picture_bytes(
            job, tile_px
        )
        return Plan(planned.width, planned.height, tile_px, planned.tiles, seconds, memory_bytes)

    def opening_s(self, needed: Iterable[tuple[str, int]]) -> float:
        """Say how long it takes to open engines, by name, at tiles that are not open now."""
        opened = self._engine
        others = set(needed) - ({(opened[0], opened[1].tile_px)} if opened is not None else set())
        return sum(self._costs[engine].open_s for engine, _ in others if engine in self._costs)

    def ahead(self, session: Session) -> int:
        """Count the other browsers whose pictures are being made."""
        return sum(other.is_busy for other in self._sessions.all() if other is not session)

    def close(self) -> None:
        """End the picture in work between two tiles, and close the engine."""
        self._closing = True
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._sessions.forget()
            found = self._next()
            if found is not None:
                self._make(*found)
            elif self._unmeasured:
                self._try_measure(self._unmeasured.pop(0))
            else:
                with self._changed:
                    # Looked at again now and then: a picture may have come between looking and waiting.
                    self._changed.wait(0.5)
        if self._engine is not None:
            self._engine[1].close()

    def _next(self) -> tuple[Session, Picture] | None:
        """One picture of the browser whose turn it is."""
        sessions = self._sessions.all()
        for step in range(len(sessions)):
            place = (self._turn + step) % len(sessions)
            queued = sessions[place].with_status("queued")
            if queued:
                self._turn = place + 1
                # Opening it again at other tiles takes longer than many a picture.
                return sessions[place], next(filter(self._fits_now, queued), queued[0])
        return None

    def _fits_now(self, picture: Picture) -> bool:
        """Tell whether a picture would be made with the engine as it is open."""
        if self._engine is None or picture.settings is None or picture.settings.engine != self._engine[0]:
            return False
        return picture.planned is not None and picture.planned[2].tile_px == self._engine[1].tile_px

    def _opened(self, name: str, tile_px: int | None = None) -> Engine:
        """The engine of that name at a tile, the only one that is open. Raises what opening raises."""
        path = self._choices[name].path
        if self._engine is not None and self._engine[0] != name:
            self._engine[1].close()
            self._engine = None
        if self._engine is None:
            options = SessionOptions(self._threads, tile_px=tile_px)
            start = time.perf_counter()
            self._engine = name, open_engine_with(path, options)
            open_s = time.perf_counter() - start
            if name not in self._costs:
                self._costs[name] = Cost(self._engine[1], open_s, _tile_ms(self._engine[1]))
                self.problems.pop(name, None)
        elif tile_px is not None:
            self._engine = name, self._engine[1].reopen(tile_px)
        return self._engine[1]

    def _try_measure(self, name: str) -> None:
        if name in self._costs:
            return
        try:
            self._opened(name)
        except IntsrError as error:
            self.problems[name] = str(error)
        except Exception as error:  # A fault of ours, or a library's: the window goes on, and says so.
            traceback.print_exc()
            self.problems[name] = f"{self._choices[name].path}: {type(error).__name__}: {error}"

    def _make(self, session: Session, picture: Picture) -> None:
        with session.lock:
            if picture.status != "queued":
                return
            picture.status, picture.started = "running", time.monotonic()
        settings = picture.settings
        assert settings is not None
        report: FileReport | None = None
        error = ""
        try:
            report = self._reported(session, picture, settings)
            error = report.error or ""
        except StoppedError:
            pass
        except (IntsrError, OSError) as problem:
            error = str(problem)
        except Exception as problem:  # A fault of ours: the window goes on, and says so.
            traceback.print_exc()
            error = f"{picture.name}: a fault in intsr ({type(problem).__name__}: {problem})"
        with session.lock:
            picture.seconds = time.monotonic() - picture.started
            picture.error = picture.renamed(error, settings)
            if report is not None and report.status == "ok":
                picture.status, picture.result = "done", Path(report.output)
                picture.result_bytes = picture.result.stat().st_size
                picture.notes = tuple(picture.renamed(note, settings) for note in report.notes)
            else:
                picture.status = "failed" if error else "stopped"
        if error:
            self._say(picture.error)

    def _reported(self, session: Session, picture: Picture, settings: Settings) -> FileReport:
        """As `intsr upscale` makes one file, in the tiles that it would take."""
        job = picture.job(settings)
        picture.result = None
        # And what was shown of it.
        for earlier in picture.source.parent.glob("*result*"):
            earlier.unlink()

        def shown(tiles: Sequence[Tile]) -> Iterator[Tile]:
            picture.tiles = len(tiles)
            for count, tile in enumerate(tiles):
                picture.tiles_done = count
                if session.stopping or self._closing:
                    raise StoppedError
                yield tile
            picture.tiles_done = len(tiles)

        engine = self._opened(
            settings.engine, cheapest_tile(self._choices[settings.engine].manifest, picture_sizes([job]))
        )
        batch = Batch(engine, settings.options(self._memory_bytes), auto_tile=True)
        try:
            (report,) = batch.reports([job], shown)
        finally:
            # It may have taken smaller tiles.
            self._engine = settings.engine, batch.engine
        return report


def is_wanted(picture: Picture, settings: Settings) -> bool:
    """Tell whether a picture is to be made: it can be read, and is not there, or was made in other settings."""
    if picture.header is None:
        return False
    made = picture.status == "done" and picture.settings == settings
    return not made and picture.status not in ("queued", "running")


def _tile_ms(engine: Engine) -> float:
    engine.warm_up()
    x = np.zeros(engine.networks[0].input.shape, np.float32)
    start = time.perf_counter()
    engine.run_pipeline(x)
    return (time.perf_counter() - start) * 1e3 / len(x)
