"""Small films: two scenes, one moving and one still, at a variable rate, with sound, subtitles and chapters."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

TIME_BASE = Fraction(1, 12800)
# Of frames, in units of it: never twice the same three.
STEPS = (512, 512, 700)
CHAPTERS = [
    {"id": 1, "start": 0, "end": 800, "time_base": Fraction(1, 1000), "metadata": {"title": "moving"}},
    {"id": 2, "start": 800, "end": 1600, "time_base": Fraction(1, 1000), "metadata": {"title": "still"}},
]
HDR = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
# Small parts, and frames that take long enough to be interrupted.
SLOWED = """
import sys, time
from intsr.runtime.batch import clips, films, frames
films.PART_FRAMES = 5
def slow(run, name):
    step = getattr(run, name)
    setattr(run, name, lambda *a: (time.sleep(0.03), step(*a))[1])
slow(frames.FrameRun, "_finish")
slow(clips.ChunkRun, "_written")
from intsr.cli.entry import run
run()
"""
_WATCHED = """
import sys
from pathlib import Path
from intsr import memory
from intsr.runtime.batch.films import upscale_film
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.engine import open_engine

def watch(frames, total):
    for count, frame in enumerate(frames, 1):
        if count in map(int, sys.argv[4:]):
            print(memory.resident_bytes())
        yield frame

with open_engine(sys.argv[1], threads=1) as engine:
    upscale_film(engine, Job(Path(sys.argv[2]), Path(sys.argv[3])), FileOptions(), watch)
"""


@dataclass(frozen=True)
class FilmKind:
    """How a film is written. subtitles: the name of their codec, "" for none."""

    suffix: str = ".mkv"
    codec: str = "ffv1"
    pixel_format: str = "yuv420p"
    audio: str = "aac"
    subtitles: str = ""
    rotation: int = 0
    # Matrix, primaries, transfer and range by H.273's numbers.
    colours: tuple[int, int, int, int] = (1, 1, 1, 1)
    options: tuple[tuple[str, str], ...] = ()
    # x265 breaks below a width of 64.
    size: tuple[int, int] = (48, 32)


PLAIN = FilmKind()
MP4 = FilmKind(".mp4", "libx264", subtitles="mov_text", rotation=90)
HDR_MKV = FilmKind(
    *(".mkv", "libx265", "yuv420p10le", "libopus", "subrip"),
    colours=(9, 9, 16, 1),
    options=(("x265-params", f"log-level=none:{HDR}"),),
    size=(64, 32),
)


def scenes(count: int, still: int, size: tuple[int, int] = PLAIN.size) -> list[np.ndarray]:
    """count frames (H, W, 3) uint8 that move, then as many as `still` of another scene that do not."""
    from skimage.data import astronaut, coffee

    width, height = size
    moving = [astronaut()[3 * i : 3 * i + height, 4 * i : 4 * i + width] for i in range(count)]
    return [
        np.ascontiguousarray(frame) for frame in moving + [coffee()[100 : 100 + height, 200 : 200 + width]] * still
    ]


def write_film(path: Path, frames: Sequence[np.ndarray], kind: FilmKind = PLAIN) -> list[int]:
    """Write frames (H, W, 3) uint8, and return their times in units of TIME_BASE."""
    matrix, primaries, transfer, color_range = kind.colours
    times = [sum(STEPS[j % 3] for j in range(i)) for i in range(len(frames))]
    with av.open(str(path), "w") as container:
        film = container.add_stream(kind.codec, rate=25, options=dict(kind.options))
        film.height, film.width = frames[0].shape[:2]
        film.pix_fmt = kind.pixel_format
        film.codec_context.time_base = film.time_base = TIME_BASE
        context = film.codec_context
        context.colorspace, context.color_range = matrix, color_range
        context.color_primaries, context.color_trc = primaries, transfer
        if kind.rotation:
            film.set_display_rotation(kind.rotation)
        container.metadata["title"] = "Two scenes"
        sound = container.add_stream(kind.audio, rate=48000) if kind.audio else None
        if sound:
            sound.metadata["language"] = "deu"
        subtitles = container.add_mux_stream(kind.subtitles) if kind.subtitles else None
        if subtitles:
            subtitles.time_base = Fraction(1, 1000)
            subtitles.metadata["language"] = "fra"
        container.set_chapters(CHAPTERS)
        container.start_encoding()
        for pixels, pts in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
                format=kind.pixel_format, dst_colorspace=matrix, dst_color_range=color_range
            )
            frame.pts, frame.time_base = pts, TIME_BASE
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
        if sound:
            write_sound(container, sound, times[-1] * TIME_BASE)
        if subtitles:
            _write_subtitles(container, subtitles, kind.subtitles == "mov_text")
    return times


def write_two_films(folder: Path, kind: FilmKind) -> Path:
    """0.mkv and 1.mkv, nine frames of one scene each; returns the folder."""
    frames = scenes(18, 0, kind.size)
    for number in range(2):
        write_film(folder / f"{number}.mkv", frames[9 * number :][:9], kind)
    return folder


def write_sound(container: Any, sound: Any, seconds: Fraction) -> None:
    wave = (np.sin(np.arange(int(48000 * seconds)) * 0.06) * 8000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.stack([wave, wave], 1).reshape(1, -1), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = 48000, 0
    context = sound.codec_context
    resampler = av.AudioResampler(
        format=context.format.name, layout="stereo", rate=48000, frame_size=context.frame_size or 1024
    )
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(sound.encode(part))
    container.mux(sound.encode(None))


def _write_subtitles(container: Any, subtitles: Any, with_length: bool) -> None:
    for begin_ms, text in ((100, b"one"), (700, b"two")):
        data = len(text).to_bytes(2, "big") + text if with_length else text
        packet = av.Packet(data)
        packet.stream, packet.time_base = subtitles, Fraction(1, 1000)
        packet.pts = packet.dts = begin_ms
        packet.duration = 400
        container.mux(packet)


@dataclass(frozen=True)
class FilmContent:
    """What players see of a film: frames as stored, their times in seconds, and packets of all other streams."""

    frames: list[np.ndarray]
    times: list[Fraction]
    packets: dict[str, list[tuple[Fraction, bytes]]]
    metadata: dict[str, str]
    languages: dict[str, str]
    chapters: list[tuple[float, float, str]]
    pixel_format: str
    colours: tuple[int, int, int, int]
    side_data: set[str]
    codec: str


def read_film(path: Path) -> FilmContent:
    """Read all of it."""
    with av.open(str(path)) as container:
        film = container.streams.video[0]
        frames = list(container.decode(film))
        first, context = frames[0], film.codec_context
        pixels, times = [frame.to_ndarray() for frame in frames], [frame.pts * frame.time_base for frame in frames]
        others = [stream for stream in container.streams if stream.type in ("audio", "subtitle")]
        languages = {stream.type: stream.language for stream in others}
        chapters = [
            (float(item["start"] * base), float(item["end"] * base), item["metadata"]["title"])
            for item in container.chapters()
            if (base := item["time_base"])
        ]
        container.seek(0)
        packets: dict[str, list[tuple[Fraction, bytes]]] = {stream.type: [] for stream in others}
        for packet in container.demux(others) if others else ():
            # MP4 fills gaps between subtitles with empty ones.
            if packet.pts is not None and bytes(packet) != b"\0\0":
                packets[packet.stream.type].append((packet.pts * packet.time_base, bytes(packet)))
        return FilmContent(
            frames=pixels,
            times=times,
            packets=packets,
            metadata=dict(container.metadata),
            languages=languages,
            chapters=chapters,
            pixel_format=context.pix_fmt,
            colours=(context.colorspace, context.color_primaries, context.color_trc, context.color_range),
            side_data={data.type.name for data in first.side_data},
            codec=context.codec.canonical_name,
        )


def kill_after_parts(command: Sequence[object], output: Path, count: int) -> None:
    """Run a command and kill it when so many parts of the film are finished, and the next one is begun."""
    state = Path(f"{output}.parts", "state.json")
    process = subprocess.Popen([str(word) for word in command])
    while not _has(state, count):
        assert process.poll() is None, "it should not have come so far"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not output.exists()


def _has(state: Path, count: int) -> bool:
    if not (state.parent / f"{count + 1:06d}.part").exists():
        return False
    return count == 0 or (state.exists() and len(json.loads(state.read_text())["parts"]) >= count)


def resident_bytes_while_upscaling(engine: Path, source: Path, output: Path, after: Sequence[int]) -> list[int]:
    """Of a process of its own, after so many frames each."""
    command = [sys.executable, "-c", _WATCHED, engine, source, output, *map(str, after)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]
