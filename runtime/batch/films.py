"""One film in, one film out, in parts that outlive a killed run; or numbered pictures on either side."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.runtime.batch.clips import ChunkRun
from intsr.runtime.batch.files import FileReport, FilmReport, failure, settled, with_header
from intsr.runtime.batch.frames import FrameRun, FrameScores, Sink
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory import MemoryBudget
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.films.encode import PartWriter, even_size, settings_for
from intsr.runtime.films.header import open_source
from intsr.runtime.films.join import Companions, check_container, join
from intsr.runtime.films.names import is_sequence, numbered, numbered_pictures
from intsr.runtime.films.parts import Parts, open_parts
from intsr.runtime.films.pyav import library_versions
from intsr.runtime.films.read import FilmReader
from intsr.runtime.films.sequence import SequenceReader
from intsr.runtime.films.types import EncoderSettings, Frame
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.writer import check_pixels_fit, write_image
from intsr.types import SYNTHETIC_NOTE

if TYPE_CHECKING:
    from intsr.runtime.engine import Engine

# A part ends after so many frames: a player finds a key frame every few seconds.
PART_FRAMES = 250
# Or after so long, as so much is lost where a run is killed; shorter parts than this cost many bits.
_PART_S, _LEAST_PART_FRAMES = 300.0, 12
# Of the file that a film is known by, at its beginning and at its end.
_LOOKED_AT_BYTES = 1 << 20
# About so many frames, None where nobody knows -> wraps the iteration over them, to show it.
FrameProgress: TypeAlias = Callable[[Iterator[Frame], int | None], Iterator[Frame]]


def upscale_film(
    engine: Engine, job: Job, options: FileOptions, frame_progress: FrameProgress | None = None
) -> FileReport:
    """Make one film, of a film or of numbered pictures (`frames/%06d.png`), or numbered pictures of a film.

    A film that cannot be read to its end is made of what there is, and its report says `failed`. Raises ImageError,
    UsageError, OutOfMemoryError, VerificationError, OSError; what is finished then waits beside the output for the
    same call to go on with it, and the output itself is as it was.
    """
    start = time.perf_counter()
    MemoryBudget(engine, options).check(job)
    with open_source(job.source, options.film) as source:
        film = _Film(engine, job, options, source, frame_progress or (lambda frames, total: frames))
        sums, resumed, notes = film.pictures() if is_sequence(job.output) else film.film()
    seconds = time.perf_counter() - start
    report = FilmReport(
        frames=int(sums["frames"]),
        resumed=resumed,
        still_share=round(sums["still_tiles"] / max(sums["tiles"], 1), 4),
        flicker=round(sums["excess_change"] / sums["still_px"], 4) if sums["still_px"] else None,
        frames_per_s=round((sums["frames"] - resumed) / seconds, 3),
    )
    error = f"{job.source}: {source.problem}; {job.output} has the rest" if source.problem else None
    return FileReport(
        str(job.source),
        str(job.output),
        "failed" if error else "ok",
        *(film.size if is_sequence(job.output) else even_size(film.size)),
        tile_px=engine.tile_px,
        ms=round(seconds * 1e3, 1),
        error=error,
        notes=(*source.facts.notes, *notes, *((SYNTHETIC_NOTE,) if engine.synthetic else ()), *engine.backend.notes),
        film=report,
    )


def checked_settings(
    source: FilmReader | SequenceReader, options: FileOptions, output: Path, size: tuple[int, int]
) -> tuple[EncoderSettings, tuple[str, ...]]:
    """Choose how a film of this (width, height) is encoded, with notes for people.

    Raises UsageError, before the first frame is computed: what the encoder refuses, what the container cannot hold.
    """
    settings, notes = settings_for(source.facts, options.film, output, size)
    check_container(output, settings, _companions(source))
    return settings, notes


def _companions(source: FilmReader | SequenceReader) -> Companions:
    return Companions(None if isinstance(source, SequenceReader) else source.facts.path, source.span)


def reported_film(
    engine: Engine,
    job: Job,
    options: FileOptions,
    frame_progress: FrameProgress | None,
    skip: Callable[[Job], bool],
) -> FileReport:
    """As `upscale_film`; what is wrong with the film becomes its report. skip: as for `upscale_files`."""
    if (report := settled(job, skip)) is not None:
        return report
    try:
        return upscale_film(engine, with_header(job), options, frame_progress)
    except Exception as error:
        return failure(job, error)


# What the frames add up to, how many of them an earlier run has made, and notes.
_Outcome: TypeAlias = tuple[dict[str, float], int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Film:
    """One film that is open for reading."""

    engine: Engine
    job: Job
    options: FileOptions
    source: FilmReader | SequenceReader
    show: FrameProgress

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the output's frames, before a film's encoder gets them even."""
        facts = self.source.facts
        return self.options.output_size(facts.width_px, facts.height_px, self.engine.upscale_factor)

    def film(self) -> _Outcome:
        """Write it as a film."""
        job, options, source = self.job, self.options, self.source
        settings, notes = checked_settings(source, options, job.output, self.size)
        with open_parts(job.output, self._identity(settings), options.overwrite) as parts:
            resumed = parts.frames
            # A chunk of frames depends on earlier ones, too.
            after = None if self.engine.manifest.chunk else parts.last_pts
            self._run(source.frames(after), _PartsSink(parts, settings), parts.folder, resumed)
            if not parts.parts:
                got, fix = "has no frame in the wanted time", "give another --start or --duration"
                raise ImageError(job.source, got, fix=fix)
            companions = _companions(source)
            begin = source.start_pts if source.span else 0
            join(job.output, parts, settings, companions, begin=begin, overwrite=options.overwrite)
            parts.remove()
        sums = {name: sum(part.scores[name] for part in parts.parts) for name in _sums(FrameScores())}
        return sums, resumed, (*notes, *companions.notes)

    def pictures(self) -> _Outcome:
        """Write its frames as pictures."""
        output, source = self.job.output, self.source
        check_pixels_fit(*self.size, 3, source.facts.bits, numbered(output, 1))
        output.parent.mkdir(parents=True, exist_ok=True)

        def is_there(number: int) -> bool:
            return not self.options.overwrite and numbered(output, number).exists()

        if self.engine.manifest.chunk is not None:
            # Chunks are of all frames, there or not.
            of_names = source.numbers if isinstance(source, SequenceReader) else None
            done = sum(1 for _ in takewhile(is_there, of_names or count(1)))
            rising = count(done + 1)
            sink = _PicturesSink(output, self.options, lambda f: of_names[f.pts] if of_names else next(rising))
            sums = _sums(self._run(source.frames(), sink, output.parent, done))
            return sums | {"frames": sums["frames"] + done}, done, ()
        numbers: deque[int] = deque()
        found = 0

        def missing() -> Iterator[Frame]:
            nonlocal found
            for number, frame in enumerate(source.frames(), 1):
                if is_there(number):
                    found += 1
                    continue
                numbers.append(number)
                yield frame

        sink = _PicturesSink(output, self.options, lambda _: numbers.popleft())
        sums = _sums(self._run(missing(), sink, output.parent))
        return sums | {"frames": sums["frames"] + found}, found, ()

    def _run(self, frames: Iterator[Frame], sink: Sink, spill_folder: Path, resumed: int = 0) -> FrameScores:
        whole = self.engine, self.options, frames, sink, spill_folder
        run = ChunkRun(*whole, done=resumed) if self.engine.manifest.chunk else FrameRun(*whole)
        total = self.source.facts.frames
        for _ in self.show(run.run(), None if total is None else max(total - resumed, 0)):
            pass
        return run.scores

    def _identity(self, settings: EncoderSettings) -> dict[str, Any]:
        """All that the frames and their encoding depend on, as plain data; its keys are words for people."""
        engine, options = self.engine, self.options
        manifest = json.dumps(asdict(engine.manifest.at_tile(max(engine.tile_sizes))), sort_keys=True).encode()
        return {
            "film": _digest(self.job.source),
            "engine": hashlib.sha256(manifest).hexdigest(),
            "--tile": engine.tile_px,
            "--precision": engine.precision,
            "--overlap": engine.overlap_px if options.overlap_px is None else options.overlap_px,
            "--color-fix": options.color_fix or engine.color_fix,
            "--start": str(options.film.start_s),
            "--duration": str(options.film.duration_s),
            "size, --codec, --crf or --preset": settings.to_json(),
            "version of the encoder": library_versions(),
        }


def _digest(path: Path) -> str:
    """Of the source: a film's size, beginning and end, of numbered pictures their names and sizes."""
    digest = hashlib.sha256()
    if is_sequence(path):
        for picture in numbered_pictures(path).values():
            digest.update(f"{picture.name} {picture.stat().st_size}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        digest.update(file.read(_LOOKED_AT_BYTES))
        end = file.seek(0, 2)
        file.seek(max(end - _LOOKED_AT_BYTES, 0))
        digest.update(f"{end}".encode() + file.read())
    return digest.hexdigest()


def _sums(scores: FrameScores) -> dict[str, float]:
    return {
        "frames": scores.frames,
        "tiles": scores.tiles,
        "still_tiles": scores.still_tiles,
        "still_px": scores.flicker.still_px,
        "excess_change": scores.flicker.excess_change,
    }


class _PartsSink:
    """Frames into one part after another."""

    def __init__(self, parts: Parts, settings: EncoderSettings) -> None:
        self._parts, self._settings = parts, settings
        self._writer: PartWriter | None = None
        self._pts: list[int] = []
        self._last_duration = 1
        self._since, self._sums, self._begun = 0.0, _sums(FrameScores()), _sums(FrameScores())
        self._encodable: Any = None

    def write(self, frame: Frame, pixels: Array | None, scores: FrameScores) -> None:
        if self._writer is None:
            self._writer, self._since = PartWriter(self._parts.next_path(), self._settings), time.monotonic()
        # Until it is written: whatever comes in between, this part cannot be ended any more.
        writer, self._writer = self._writer, None
        if pixels is not None:
            self._encodable = writer.encodable(_even(pixels))
        writer.write(self._encodable)
        self._writer, self._last_duration = writer, frame.duration
        self._pts.append(frame.pts)
        self._sums = _sums(scores)
        took_long = time.monotonic() - self._since >= _PART_S and len(self._pts) >= _LEAST_PART_FRAMES
        if len(self._pts) >= PART_FRAMES or took_long:
            self.close()

    def close(self) -> None:
        """End the part. What is written so far is good, whyever no more comes: the next run goes on from there."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.close()
        scores = {name: value - self._begun[name] for name, value in self._sums.items()}
        self._parts.add(tuple(self._pts), self._last_duration, scores)
        self._pts, self._begun = [], self._sums


def _even(pixels: Array) -> Array:
    """(H, W, 3) with a last row and column more where their number is odd."""
    height, width = pixels.shape[:2]
    even_width, even_height = even_size((width, height))
    return np.pad(pixels, ((0, even_height - height), (0, even_width - width), (0, 0)), mode="edge")


class _PicturesSink:
    """Frames into pictures, of what number each. Those that are there stay, unless they are to be replaced."""

    def __init__(self, output: Path, options: FileOptions, number_of: Callable[[Frame], int]) -> None:
        self._output, self._options, self._number_of = output, options, number_of
        self._pixels: Array | None = None

    def write(self, frame: Frame, pixels: Array | None, scores: FrameScores) -> None:
        self._pixels = self._pixels if pixels is None else pixels
        assert self._pixels is not None
        path = numbered(self._output, self._number_of(frame))
        if self._options.overwrite or not path.exists():
            write_image(path, self._pixels, None, ImageMetadata(), self._options.quality)

    def close(self) -> None:
        """Each picture is closed already."""
