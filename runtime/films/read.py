"""A film file as frames: upright, in RGB, each with the time that the file gives it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from intsr.arrays import Array
from intsr.errors import ImageError
from intsr.runtime.films.clock import RisingClock
from intsr.runtime.films.hdr import hdr_from_side_data
from intsr.runtime.films.pyav import INTERPOLATION, broken_film_as_image_error, film_stream, load_pyav, open_input
from intsr.runtime.films.types import Colours, FilmFacts, FilmOptions, Frame
from intsr.runtime.pictures.reader import turned

# By the signs of a, b, c, d, where a display matrix moves (x, y) to (a x + c y, b x + d y), y down: EXIF's number.
_SIGNS = (
    *((1, 0, 0, 1), (-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1)),
    *((0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0), (0, -1, 1, 0)),
)
_ORIENTATIONS = {signs: number for number, signs in enumerate(_SIGNS, 1)}
_TURNED = 5
# Side data of a frame that changes from scene to scene, and what it is called.
_DYNAMIC_HDR = {"DYNAMIC_HDR_PLUS": "HDR10+", "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision"}
_USUAL_RATE = Fraction(25)
_CONTAINER_UNITS = 1_000_000
# A film that ends this much earlier than its header says was cut off.
_CUT_OFF_S = 0.5


class FilmReader:
    """A film that is open for reading. Raises ImageError: no film, or none with a video stream.

    facts: of its header and its first frame. problem: once its frames are through, why they are not all; "" where
    they are. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path, options: FilmOptions) -> None:
        self._path, self._options, self.problem = path, options, ""
        self._broken = 0
        self._reached_s: float | None = None
        self._reformatter = load_pyav().video.reformatter.VideoReformatter()
        with broken_film_as_image_error(path):
            self._open()
            try:
                first = self._first_frame()
                self._stored_size = first.width, first.height
                self.facts = _facts(path, self._container, self._stream, first, options)
                self._start_again()
            except BaseException:
                self._container.close()
                raise

    def _open(self) -> None:
        self._container = open_input(self._path)
        self._stream = film_stream(self._container)
        if self._stream is None:
            self._container.close()
            raise ImageError(self._path, "has no video stream", "a film")
        self._stream.thread_type = "AUTO"

    def _start_again(self) -> None:
        self._container.close()
        self._open()

    def _first_frame(self) -> Any:
        for packet in self._container.demux(self._stream):
            for frame in _decoded(packet) or ():
                return frame
        raise ImageError(self._path, "no frame of it can be read", "a film")

    @property
    def span(self) -> tuple[Fraction, Fraction | None] | None:
        """Begin and end of the wanted part in seconds; None for the whole."""
        if not self._options.start_s and self._options.duration_s is None:
            return None
        begin, end = (None if pts is None else pts * self.facts.time_base for pts in (self.start_pts, self.end_pts))
        assert begin is not None
        return begin, end

    @property
    def start_pts(self) -> int:
        """Where the wanted part begins, in units of the time base."""
        begin = self._stream.start_time or 0
        return begin + math.ceil(self._options.start_s / self.facts.time_base)

    @property
    def end_pts(self) -> int | None:
        """Where the wanted part ends: frames from there on are not read. None for the film's own end."""
        if self._options.duration_s is None:
            return None
        return self.start_pts + math.ceil(self._options.duration_s / self.facts.time_base)

    def frames(self, after: int | None = None) -> Iterator[Frame]:
        """Yield the wanted frames, times rising. after: only those later than this; for who has the others already.

        What cannot be decoded is left out, and the film ends where it cannot be read on: `problem` says so then.
        """
        end = self.end_pts
        # Frames that somebody has are read as well: a time may depend on those before it.
        least = self.start_pts if after is None else max(self.start_pts, after + 1)
        for found, pts in self._timed_from(self.start_pts) if self._options.start_s else self._timed():
            if end is not None and pts >= end:
                return
            if (found.width, found.height) != self._stored_size:
                width, height = self._stored_size
                self.problem = f"its frames change from {width}x{height} to {found.width}x{found.height} pixels"
                return
            if pts >= least:
                yield Frame(pts, self._pixels(found), found.duration or self._usual_step)
        self._note_end()

    def _timed_from(self, least: int) -> Iterator[tuple[Any, int]]:
        """As `_timed`, from somewhere before `least` on."""
        av = load_pyav()
        try:
            self._container.seek(least - 1, stream=self._stream)
            timed = self._timed()
            first = next(timed, None)
        except av.FFmpegError:
            first = None
        if first is not None and first[1] < least:
            yield first
            yield from timed
            return
        # Not every container can be searched, and some are searched wrongly.
        self._start_again()
        yield from self._timed()

    @property
    def _usual_step(self) -> int:
        return max(round(1 / (self.facts.rate * self.facts.time_base)), 1)

    def _timed(self) -> Iterator[tuple[Any, int]]:
        """Yield PyAV's frames with their times, made to rise."""
        av = load_pyav()
        clock = RisingClock(self.facts.time_base, self._usual_step)
        # AVI has no times, only an order: what decoders make of it is wrong where frames come out of order.
        by_order, shift = self._container.format.name == "avi", 0
        packets = self._container.demux()
        is_first = True
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self.problem = f"cannot be read on ({error.strerror})"
                return
            if packet is None:
                return
            self._note_packet(packet)
            if packet.stream.index != self._stream.index:
                continue
            frames = _decoded(packet)
            self._broken += frames is None or packet.is_corrupt
            for frame in frames or ():
                time = frame.pts
                if by_order and frame.dts is not None:
                    shift = frame.dts - (frame.pts if frame.pts is not None else frame.dts) if is_first else shift
                    time = frame.dts - shift
                is_first = False
                yield frame, clock.after_last() if time is None else clock.rising(time)

    def _note_packet(self, packet: Any) -> None:
        if packet.pts is not None:
            end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self._reached_s = end_s if self._reached_s is None else max(self._reached_s, end_s)

    def _note_end(self) -> None:
        """Find out whether the film was whole."""
        duration, start = self._container.duration, self._container.start_time
        if not self.problem and duration is not None and self._reached_s is not None:
            whole_s, reached_s = duration / _CONTAINER_UNITS, self._reached_s - (start or 0) / _CONTAINER_UNITS
            if reached_s < whole_s - _CUT_OFF_S:
                self.problem = f"ends after {reached_s:.1f} of {whole_s:.1f} seconds"
        if not self.problem and self._broken:
            self.problem = f"{self._broken} of its packets are broken"

    def _pixels(self, frame: Any) -> Array:
        facts = self.facts
        known = facts.colours.known(self._stored_size[1])
        try:
            rgb = self._reformatter.reformat(
                frame,
                format="rgb48le" if facts.bits == 16 else "rgb24",
                src_colorspace=None if frame.format.is_rgb else known.matrix,
                src_color_range=known.range,
                interpolation=INTERPOLATION,
                threads=1,
            )
        except load_pyav().FFmpegError as error:
            got = (
                f"colours of {frame.format.name} with H.273's matrix {known.matrix} cannot be read ({error.strerror})"
            )
            raise ImageError(self._path, got, fix="convert it to another format first") from error
        return turned(rgb.to_ndarray(), facts.orientation)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decoded(packet: Any) -> list[Any] | None:
    """The frames of a packet; None where it is broken."""
    try:
        return list(packet.decode())
    except load_pyav().FFmpegError:
        return None


def _facts(path: Path, container: Any, stream: Any, first: Any, options: FilmOptions) -> FilmFacts:
    orientation, unknown_turn = _orientation(first)
    width, height = (first.width, first.height) if orientation < _TURNED else (first.height, first.width)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    rate = Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
    components = first.format.components
    interlaced = "its frames are interlaced, and taken as they are: deinterlace it first"
    transparent = "transparency dropped: films are upscaled opaque"
    dynamic = {_DYNAMIC_HDR[name] for data in first.side_data if (name := data.type.name) in _DYNAMIC_HDR}
    notes = {
        f"{' and '.join(sorted(dynamic))} dropped: it was made for the frames of the original": bool(dynamic),
        unknown_turn: bool(unknown_turn),
        interlaced: first.interlaced_frame,
        # VP8's and VP9's is beside the film, where no decoder looks.
        transparent: any(item.is_alpha for item in components) or stream.metadata.get("alpha_mode") == "1",
    }
    return FilmFacts(
        path=path,
        width_px=width,
        height_px=height,
        bits=16 if max(component.bits for component in components) > 8 else 8,
        pixel_format=first.format.name,
        time_base=Fraction(stream.time_base),
        rate=rate,
        frames=_expected_frames(container, stream, rate, options),
        colours=Colours(first.colorspace, first.color_primaries, first.color_trc, first.color_range),
        pixel_aspect=aspect if orientation < _TURNED else 1 / aspect,
        orientation=orientation,
        hdr=hdr_from_side_data(first.side_data),
        notes=tuple(note for note, holds in notes.items() if holds),
    )


def _expected_frames(container: Any, stream: Any, rate: Fraction, options: FilmOptions) -> int | None:
    """About so many frames are wanted, for who waits for them."""
    if container.duration is None:
        return None
    whole_s: float = container.duration / _CONTAINER_UNITS
    most_s = whole_s if options.duration_s is None else float(options.duration_s)
    wanted_s = min(max(whole_s - float(options.start_s), 0), most_s)
    # Where it is known by number: AVI counts frames that are none.
    if stream.frames and container.format.name.startswith("mov") and wanted_s == whole_s:
        return int(stream.frames)
    return max(math.ceil(wanted_s * float(rate)), 1)


def _orientation(frame: Any) -> tuple[int, str]:
    """EXIF's number for the display matrix, and a note where it asks for something else than a quarter turn."""
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return 1, ""
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    largest = max(map(abs, (a, b, c, d))) or 1
    signs = tuple(round(value / largest) for value in (a, b, c, d))
    found = _ORIENTATIONS.get(signs)
    return (found, "") if found else (1, "its display matrix was dropped: it is no quarter turn")
