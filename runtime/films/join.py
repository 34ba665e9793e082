"""Finished parts, and what else the original has, into one film; nothing is encoded again."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from intsr.errors import ImageError, UsageError, printable
from intsr.files import atomic_path
from intsr.runtime.films.clock import RisingClock
from intsr.runtime.films.encode import part_container, write_trial
from intsr.runtime.films.names import CONTAINERS, container_from_path
from intsr.runtime.films.parts import Part, Parts, lone_part
from intsr.runtime.films.pyav import film_stream, load_pyav, open_input
from intsr.runtime.films.types import EncoderSettings

# Of a film's own stream, what its encoder and container write anew.
_OWN_METADATA = (
    "encoder",
    "duration",
    "rotate",
    "timecode",
    "alpha_mode",
    "number_of_frames",
    "number_of_bytes",
    "bps",
    "statistics",
)
_GAP = b"\0\0"
_MOST_LEAD_IN_S = Fraction(1, 10)


class Companions:
    """What the original has beside its film: sound, subtitles, chapters, names. source: None where there is nothing.

    span: begin and end of the wanted part in seconds, None for the whole: else all begins with it.
    """

    def __init__(self, source: Path | None, span: tuple[Fraction, Fraction | None] | None = None) -> None:
        self._span, self._source = span, source or Path()
        self._container: Any = open_input(source) if source is not None else None
        # Streams of the original -> those of the output.
        self._streams: dict[int, Any] = {}
        self._clocks: dict[int, RisingClock] = {}
        # Packets that the new container did not take.
        self._refused = 0
        self.notes: list[str] = []

    def add_to(self, output: Any, film: Any) -> None:
        """Announce all of it to a container that is open for writing. film: the stream of the upscaled film.

        Raises UsageError where the container cannot hold a stream.
        """
        if self._container is None:
            return
        original = film_stream(self._container)
        output.metadata.update(_names_of(self._container))
        film.metadata.update(_names_of(original))
        film.disposition = original.disposition
        for stream in self._container.streams:
            if stream.index != original.index:
                self._add_stream(output, stream)
        if chapters := self._chapters():
            output.set_chapters(chapters)

    def _add_stream(self, output: Any, stream: Any) -> None:
        if stream.type == "attachment":
            if output.format.name == "matroska":
                output.add_attachment(
                    stream.name or stream.metadata.get("filename", ""), stream.mimetype, stream.data
                )
            else:
                self._drop(stream, f"{output.format.name} holds no attachments")
            return
        # MP4 keeps chapters as a stream, too; it writes its own.
        if stream.type == "data" and stream.frames == len(self._container.chapters()) > 0:
            return
        if stream.type not in ("audio", "subtitle"):
            self._drop(stream, "only sound, subtitles and one film are kept")
            return
        try:
            copy = output.add_stream_from_template(stream)
        except (ValueError, load_pyav().FFmpegError) as error:
            name = stream.codec_context.name if stream.codec_context else "unknown"
            got = f"{output.format.name} cannot hold its {stream.type}, which is {name}"
            others = dict.fromkeys((self._source.suffix.lower(), ".mkv"))
            known = [suffix for suffix in others if suffix in CONTAINERS and CONTAINERS[suffix] != output.format.name]
            fix = f"write {' or '.join(known)}" if known else "write another container"
            raise UsageError(self._source, got, fix=fix) from error
        copy.metadata.update(_names_of(stream))
        copy.disposition = stream.disposition
        self._streams[stream.index] = copy

    def _drop(self, stream: Any, why: str) -> None:
        self.notes.append(f"stream {stream.index} ({stream.type}) dropped: {why}")

    def _chapters(self) -> list[Any]:
        chapters = self._container.chapters()
        if self._span is None:
            return list(chapters)
        begin, end = self._span
        kept = []
        for chapter in chapters:
            base = chapter["time_base"]
            first, last = chapter["start"] * base - begin, chapter["end"] * base - begin
            last = last if end is None else min(last, end - begin)
            if last > 0 and last > first:
                kept.append(chapter | {"start": round(max(first, 0) / base), "end": round(last / base)})
        return kept

    def packets(self) -> Iterator[Any]:
        """Yield the packets of all streams that were announced, in the order of the file, ready to be written."""
        if self._container is None or not self._streams:
            return
        wanted = [stream for stream in self._container.streams if stream.index in self._streams]
        try:
            for packet in self._container.demux(wanted):
                # An MP4's subtitles have empty packets between them, which the new container makes itself.
                is_gap = packet.size == len(_GAP) and bytes(packet) == _GAP and packet.stream.type == "subtitle"
                if packet.pts is None or is_gap or _is_hidden(packet):
                    continue
                self._make_rise(packet)
                if self._moved(packet):
                    packet.stream = self._streams[packet.stream.index]
                    yield packet
        # It ends early: who reads its film has said so.
        except load_pyav().FFmpegError:
            return

    def _make_rise(self, packet: Any) -> None:
        index = packet.stream.index
        clock = self._clocks.setdefault(index, RisingClock(packet.time_base, packet.duration or 1))
        dts = packet.pts if packet.dts is None else packet.dts
        change = clock.rising(dts) - dts
        packet.pts, packet.dts = packet.pts + change, dts + change

    def _moved(self, packet: Any) -> bool:
        """Move a packet to the beginning of the wanted part; False where it is not in it."""
        if self._span is None:
            return True
        (begin, end), at = self._span, packet.pts * packet.time_base
        if at < begin or (end is not None and at >= end):
            return False
        offset = round(begin / packet.time_base)
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        return True

    def note_refused(self) -> None:
        """Count a packet that the new container did not take: damaged ones are no reason to lose the film."""
        self._refused += 1
        lost = f"{self._refused} packets of sound or subtitles dropped: they are damaged"
        self.notes = [note for note in self.notes if not note.endswith("damaged")] + [lost]

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


def _is_hidden(packet: Any) -> bool:
    """Tell whether an edit list hides it: not every container can, and it would be heard. An encoder's own lead-in,
    which decoders leave out, is kept.
    """
    return bool(packet.is_discard) and -packet.pts * packet.time_base > _MOST_LEAD_IN_S


def _names_of(item: Any) -> dict[str, str]:
    """Metadata of a container or stream that still holds for a copy."""
    return {name: value for name, value in item.metadata.items() if not _is_own(name)}


def _is_own(name: str) -> bool:
    return name.lower().startswith((*_OWN_METADATA, "_statistics", "major_brand", "minor_version", "compatible_"))


def check_container(output: Path, settings: EncoderSettings, companions: Companions) -> None:
    """Encode a black frame, and write it to nowhere. Raises UsageError: what the encoder refuses, what the container
    cannot hold.
    """
    av = load_pyav()
    name = container_from_path(output)
    try:
        with tempfile.TemporaryDirectory(prefix="intsr-trial-") as folder:
            parts = lone_part(Path(folder))
            write_trial(parts.path(parts.parts[0]), settings)
            with av.open("/dev/null", "w", format=name) as container:
                _write(container, parts, settings, companions, iter(()))
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        fix = "choose another --codec or suffix"
        raise UsageError(output, printable(f"{name} cannot hold this film ({why})"), fix=fix) from error
    finally:
        companions.close()


def join(
    output: Path, parts: Parts, settings: EncoderSettings, companions: Companions, *, begin: int, overwrite: bool
) -> None:
    """Write the film whole or not at all. begin: the time of the parts that is its beginning.

    Raises UsageError, OutputExistsError, OSError; ImageError for parts that do not fit together.
    """
    av = load_pyav()
    try:
        with atomic_path(output, overwrite) as temporary:
            name = container_from_path(output)
            # Without it, the same film would have other bytes each time: a random number, and times.
            with av.open(f"file:{temporary}", "w", format=name, options={"fflags": "+bitexact"}) as container:
                _write(container, parts, settings, companions, companions.packets(), begin=begin)
    except av.FFmpegError as error:
        raise ImageError(output, printable(f"cannot be written ({error.strerror})")) from error
    finally:
        companions.close()


def _write(
    container: Any,
    parts: Parts,
    settings: EncoderSettings,
    companions: Companions,
    beside: Iterator[Any],
    *,
    begin: int = 0,
) -> None:
    with load_pyav().open(f"file:{parts.path(parts.parts[0])}", format=part_container(settings.codec)) as first:
        film = container.add_stream_from_template(first.streams.video[0], opaque=True)
    film.time_base = settings.time_base
    if container.format.name in ("mp4", "mov") and film.codec_context.name == "hevc":
        # The name under which Apple's players take it.
        film.codec_context.codec_tag = "hvc1"
    companions.add_to(container, film)
    for packet in heapq.merge(_film_packets(parts, settings, film, begin), beside, key=_decoded_at):
        is_film = packet.stream.index == film.index
        try:
            container.mux(packet)
        except load_pyav().FFmpegError:
            if is_film:
                raise
            companions.note_refused()


def _decoded_at(packet: Any) -> Fraction:
    time: Fraction = (packet.dts if packet.dts is not None else packet.pts) * packet.time_base
    return time


def _film_packets(parts: Parts, settings: EncoderSettings, film: Any, begin: int) -> Iterator[Any]:
    """Yield the packets of all parts, their times those of the original.

    A frame is decoded when the next one of all frames could be shown, `delay` frames earlier: those times rise, and
    with the largest delay of any part none is later than the frame's own.
    """
    all_pts = list(chain.from_iterable(part.pts for part in parts.parts))
    delay = max(_delay(parts.path(part), settings) for part in parts.parts)
    end = all_pts[-1] + parts.parts[-1].last_duration
    durations = {earlier: later - earlier for earlier, later in pairwise([*all_pts, end])}
    lead = [all_pts[0] - count * durations[all_pts[0]] for count in range(delay, 0, -1)]
    decoded_at = iter([*lead, *all_pts])
    for part in parts.parts:
        path = parts.path(part)
        for pts, packet in zip(_pts_in_order(path, settings, part), _packets(path, settings), strict=True):
            packet.stream, packet.time_base = film, settings.time_base
            packet.pts, packet.dts, packet.duration = pts - begin, next(decoded_at) - begin, durations[pts]
            yield packet


def _packets(path: Path, settings: EncoderSettings) -> Iterator[Any]:
    with load_pyav().open(f"file:{path}", format=part_container(settings.codec)) as container:
        for packet in container.demux(video=0):
            if packet.pts is not None:
                yield packet


def _pts_in_order(path: Path, settings: EncoderSettings, part: Part) -> Sequence[int]:
    """The times of a part's frames in the order of its packets."""
    ranks = _ranks(path, settings)
    if len(ranks) != len(part.pts):
        got = f"{len(ranks)} frames"
        raise ImageError(path, got, f"{len(part.pts)} as were written", "remove the folder and begin anew")
    return [part.pts[rank] for rank in ranks]


def _ranks(path: Path, settings: EncoderSettings) -> list[int]:
    rounded = [packet.pts for packet in _packets(path, settings)]
    rank_of = {pts: rank for rank, pts in enumerate(sorted(rounded))}
    return [rank_of[pts] for pts in rounded]


def _delay(path: Path, settings: EncoderSettings) -> int:
    """By how many frames the packets of a part come out of order, at most."""
    return max((place - rank for place, rank in enumerate(_ranks(path, settings))), default=0)
