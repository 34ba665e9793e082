"""What one browser has brought and got: its pictures, in a folder of its own."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from intsr.errors import IntsrError, UsageError
from intsr.runtime.app.choice import Choice
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.naming import SAME_FORMAT, Naming
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES
from intsr.runtime.pictures.picture import PictureHeader
from intsr.runtime.pictures.reader import read_header

# A browser that has not been heard of for so long is gone, and its pictures with it.
FORGOTTEN_AFTER_S = 3600.0
_NAME_BYTES = 255
# Control characters, and halves of characters. Spaces and joiners of all kinds are in names that systems give.
_NOT_IN_NAMES = ("Cc", "Cs")


@dataclass(frozen=True, slots=True)
class Settings:
    """How pictures are made, in the words of `intsr upscale`. engine: by its name among the choices."""

    engine: str
    outscale: float
    color_fix: str
    output_format: str = SAME_FORMAT

    def options(self, memory_bytes: int | None = None) -> FileOptions:
        """Raises UsageError."""
        return FileOptions(color_fix=self.color_fix, outscale=self.outscale, memory_bytes=memory_bytes)

    def name(self, name: str) -> str:
        """Return what the result of a picture of that name is called, its folders included."""
        path = PurePosixPath(name)
        # By its suffix alone: whatever the rest is like, here it is a picture, and no film.
        known = path.suffix if path.suffix.lower() in PICTURE_SUFFIXES else ""
        made = Naming(output_format=self.output_format).name(Path(f"picture{known}"))
        return str(path.with_name(f"{path.stem}_x{self.outscale:g}{Path(made).suffix}"))


def first_settings(choice: Choice) -> Settings:
    """Those of the engine."""
    return Settings(choice.name, float(choice.manifest.upscale_factor), choice.manifest.color_fix)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a picture will take. seconds, memory_bytes: None until the engine has been measured."""

    width: int
    height: int
    tile_px: int
    tiles: int
    seconds: float | None
    memory_bytes: int | None


@dataclass(slots=True)
class Picture:
    """One picture. On disk it has names of ours: what people call it is for people alone."""

    number: int
    name: str
    source: Path
    # Of a file that is no picture, None, and `unreadable` says why.
    header: PictureHeader | None = None
    unreadable: str = ""
    # `waiting`, `queued`, `running`, `done`, `failed` or `stopped`.
    status: str = "waiting"
    # How the result was made, or is being made.
    settings: Settings | None = None
    result: Path | None = None
    result_bytes: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    # The session's, when it was last asked for.
    batch: int = 0
    tiles_done: int = 0
    tiles: int = 0
    # What it was last said to take: for which settings, and by which measurement.
    planned: tuple[Settings, object, Plan] | None = None
    started: float = 0.0
    seconds: float = 0.0

    def read(self) -> None:
        """Read what the file says of itself, once it is there."""
        try:
            self.header = read_header(self.source)
        except (IntsrError, OSError) as error:
            self.unreadable = str(error).replace(str(self.source), self.name)

    def job(self, settings: Settings) -> Job:
        suffix = Path(settings.name(self.name)).suffix
        return Job(self.source, self.source.with_name(f"result{suffix}"), header=self.header)

    def renamed(self, text: str, settings: Settings) -> str:
        """Call files in a text as people do."""
        named = text.replace(str(self.source), self.name)
        return named.replace(str(self.job(settings).output), settings.name(self.name))


@dataclass(slots=True)
class Session:
    """A browser's pictures. Whoever reads or changes them holds `lock`."""

    token: str
    folder: Path
    settings: Settings
    pictures: dict[int, Picture] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    stopping: bool = False
    # Counts the times that something was asked for.
    batch: int = 0
    heard: float = field(default_factory=time.monotonic)
    _added: int = 0

    def add(self, name: str) -> Picture:
        """Make room for a picture; its file is to be written. Raises UsageError for a name that leads elsewhere."""
        check_name(name)
        with self.lock:
            self._added += 1
            number = self._added
        folder = self.folder / str(number)
        folder.mkdir()
        suffix = Path(name).suffix.lower()
        # The content decides; the suffix is what the result's is taken from.
        return Picture(number, name, folder / f"source{suffix if suffix in PICTURE_SUFFIXES else ''}")

    def keep(self, picture: Picture) -> None:
        """Take a picture whose file is there."""
        picture.read()
        with self.lock:
            self.pictures[picture.number] = picture

    def remove(self, picture: Picture) -> None:
        """Forget a picture that is not being made, and delete its files."""
        with self.lock:
            if picture.status == "running":
                return
            # It may be queued.
            picture.status = "stopped"
            self.pictures.pop(picture.number, None)
        shutil.rmtree(picture.source.parent, ignore_errors=True)

    def with_status(self, *statuses: str) -> list[Picture]:
        with self.lock:
            return [picture for picture in self.pictures.values() if picture.status in statuses]

    @property
    def is_busy(self) -> bool:
        return bool(self.with_status("queued", "running"))

    def results(self) -> Iterator[tuple[str, Picture]]:
        """Yield what is done, each under a name of its own."""
        taken: set[str] = set()
        for picture in self.with_status("done"):
            assert picture.settings is not None
            first = name = PurePosixPath(picture.settings.name(picture.name))
            count = 1
            while str(name).casefold() in taken:
                count += 1
                name = first.with_stem(f"{first.stem} ({count})")
            taken.add(str(name).casefold())
            yield str(name), picture


class Sessions:
    """All of them, by tokens that nobody can guess."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def find(self, token: str) -> Session | None:
        session = self._open.get(token)
        if session is not None:
            session.heard = time.monotonic()
        return session

    def open(self) -> Session:
        """Begin a new one."""
        token = secrets.token_urlsafe(24)
        session = Session(token, self._folder / f"session-{secrets.token_hex(8)}", self._settings)
        session.folder.mkdir()
        with self._lock:
            self._open[token] = session
        return session

    def all(self) -> list[Session]:
        with self._lock:
            return list(self._open.values())

    def forget(self) -> None:
        """End those of browsers that are gone, and delete their files."""
        now = time.monotonic()
        for session in self.all():
            if now - session.heard > FORGOTTEN_AFTER_S and not session.is_busy:
                with self._lock:
                    self._open.pop(session.token, None)
                shutil.rmtree(session.folder, ignore_errors=True)


def check_name(name: str) -> None:
    """Raises UsageError for what is no plain name of a picture, or of one in folders below."""
    parts = name.split("/")
    plain = all(
        part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _NAME_BYTES for part in parts
    ) and not any(letter == "\\" or unicodedata.category(letter) in _NOT_IN_NAMES for letter in name)
    if not plain:
        raise UsageError(name[:_NAME_BYTES], "is no name that a picture may have here", fix="rename it")
