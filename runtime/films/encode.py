"""How a film is encoded: the encoder that fits, what it is told, and frames into a part of the film."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import UsageError, printable
from intsr.runtime.films.hdr import LIGHT_LEVEL, MASTERING
from intsr.runtime.films.names import container_from_path
from intsr.runtime.films.pyav import INTERPOLATION, load_pyav
from intsr.runtime.films.types import RGB_MATRIX, UNSPECIFIED, EncoderSettings, FilmFacts, FilmOptions

# By container, for 8 bits and for more.
_CODECS = {"webm": ("libvpx-vp9", "libsvtav1")}
_USUAL_CODECS = ("libx264", "libx265")
# A quality at which the encoder is not what is seen, where nobody asks for another.
_CRF = {"libx264": 16, "libx265": 18, "libvpx-vp9": 20, "libsvtav1": 20}
# Encoder -> the option for settings of its own, and the names that it has for those of HDR.
_HDR_OPTIONS = {
    "libx264": ("x264-params", {MASTERING: "mastering-display", LIGHT_LEVEL: "cll"}),
    "libx265": ("x265-params", {MASTERING: "master-display", LIGHT_LEVEL: "max-cll"}),
}
# x264's and x265's; asked for another one, they write to stderr themselves.
_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"),
)
# Below, x265 4.2 writes past the end of its memory.
_LEAST_X265_PX = 64
# MPEG-TS takes others, too, and then nobody can tell what they are.
_TS_CODECS = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vvc", "dirac")
# Places of frames in a part, seconds. Their times are kept beside it: no container that rounds those can mix them up.
_PART_STEP = Fraction(1, 25)
# A part is kept in the first of these that holds its codec.
_PART_CONTAINERS = ("matroska", "mov", "avi")


def settings_for(
    facts: FilmFacts, options: FilmOptions, output: Path, size: tuple[int, int]
) -> tuple[EncoderSettings, tuple[str, ...]]:
    """Choose the encoder for an output of this (width, height), and notes on what it cannot keep.

    Raises UsageError: an encoder that this build of FFmpeg has not, one that the container cannot hold, an option
    that it has not.
    """
    container = container_from_path(output)
    codec = options.codec or _CODECS.get(container, _USUAL_CODECS)[facts.bits > 8]
    encoder = _encoder(codec)
    if not _holds(container, codec):
        raise UsageError(output, f"{container} cannot hold {codec}", fix="choose another --codec or suffix")
    pixel_format, notes = _pixel_format(encoder, facts)
    colours = facts.colours.known(facts.height_px)
    if colours.matrix == RGB_MATRIX and not load_pyav().VideoFormat(pixel_format).is_rgb:
        colours = replace(colours, matrix=UNSPECIFIED, range=0).known(facts.height_px)
    given, hdr_notes = _encoder_options(codec, facts, options)
    # Colours of two rows and columns are one number in most formats.
    width_px, height_px = even_size(size)
    if codec == "libx265" and width_px < _LEAST_X265_PX:
        got, expected = f"frames would be {width_px} pixels wide", f"at least {_LEAST_X265_PX} for libx265"
        raise UsageError(output, got, expected, "give --codec libx264")
    settings = EncoderSettings(
        codec=codec,
        options=tuple(sorted(given.items())),
        pixel_format=pixel_format,
        width_px=width_px,
        height_px=height_px,
        rate=facts.rate,
        time_base=facts.time_base,
        colours=colours,
        pixel_aspect=facts.pixel_aspect,
    )
    return settings, (*notes, *hdr_notes)


def even_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of the encoded frame: with a column and a row more where their numbers are odd."""
    width, height = size
    return width + width % 2, height + height % 2


def _encoder(name: str) -> Any:
    av = load_pyav()
    try:
        encoder = av.Codec(name, "w")
    except (av.codec.codec.UnknownCodecError, ValueError):
        encoder = None
    if encoder is None or encoder.type != "video":
        known = " ".join(_encoders())
        raise UsageError("--codec", f"{name!r} is no video encoder of this build", f"for example one of {known}")
    return encoder


def _encoders() -> list[str]:
    """Names of encoders that people ask for, as far as this build has them."""
    wanted = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "prores_ks", "ffv1", "dnxhd")
    return [name for name in wanted if name in load_pyav().codecs_available]


def _holds(container: str, codec: str) -> bool:
    av = load_pyav()
    if container == "mpegts" and av.Codec(codec, "w").canonical_name not in _TS_CODECS:
        return False
    with av.open("/dev/null", "w", format=container) as probe:
        try:
            probe.add_stream(codec, rate=1)
        except ValueError:
            return False
    return True


def part_container(codec: str) -> str:
    """Return the container that parts of this codec are kept in. Raises UsageError where there is none."""
    for container in _PART_CONTAINERS:
        if _holds(container, codec):
            return container
    raise UsageError("--codec", f"{codec} fits into none of {', '.join(_PART_CONTAINERS)}", fix="choose another")


def _pixel_format(encoder: Any, facts: FilmFacts) -> tuple[str, tuple[str, ...]]:
    """The encoder's format that keeps most of the film's, and a note where bits are lost."""
    formats = [item.name for item in encoder.video_formats or () if not _has_alpha(item)]
    # Full range under another name, which is told apart.
    formats = [name for name in formats if not name.startswith("yuvj")] or ["yuv420p"]
    av = load_pyav()
    wanted = facts.pixel_format.replace("yuvj", "yuv")
    if wanted in formats:
        return wanted, ()
    best = av.codec.codec.find_best_pix_fmt_of_list(formats, wanted)[0]
    bits = max(component.bits for component in best.components)
    lost = facts.bits > 8 and bits <= 8
    return best.name, (f"8 bits instead of more: {encoder.name} has no others",) if lost else ()


def _has_alpha(pixel_format: Any) -> bool:
    return any(component.is_alpha for component in pixel_format.components)


def _encoder_options(codec: str, facts: FilmFacts, options: FilmOptions) -> tuple[dict[str, str], tuple[str, ...]]:
    known = {option.name for option in load_pyav().CodecContext.create(codec, "w").supported_options.private}
    given: dict[str, str] = {}
    crf = options.crf if options.crf is not None else _CRF.get(codec)
    for name, value in (("crf", crf), ("preset", options.preset)):
        if value is None:
            continue
        if name not in known:
            raise UsageError(f"--{name}", f"has no effect: {codec} has no such option", fix="leave it out")
        if name == "preset" and codec in _HDR_OPTIONS and value not in _PRESETS:
            raise UsageError("--preset", repr(value), f"one of {' '.join(_PRESETS)}")
        given[name] = str(value)
    own, names = _HDR_OPTIONS.get(codec, ("", {}))
    words = [f"{names[name]}={value}" for name, value in facts.hdr if name in names]
    if own == "x265-params":
        # Else it writes to stderr.
        words.insert(0, "log-level=none")
    if words:
        given[own] = ":".join(words)
    lost = [name for name, _ in facts.hdr if name not in names]
    return given, (f"{' and '.join(lost)} of HDR dropped: {codec} is not told",) if lost else ()


def add_encoder_stream(container: Any, settings: EncoderSettings) -> Any:
    """Add the film's stream to a PyAV container that is open for writing, and return it."""
    stream = container.add_stream(settings.codec, rate=settings.rate, options=dict(settings.options))
    context, colours = stream.codec_context, settings.colours
    context.width, context.height, context.pix_fmt = settings.width_px, settings.height_px, settings.pixel_format
    context.time_base = stream.time_base = 1 / settings.rate
    context.sample_aspect_ratio = settings.pixel_aspect
    context.colorspace, context.color_range = colours.matrix, colours.range
    context.color_primaries, context.color_trc = colours.primaries, colours.transfer
    # The header apart from the packets, whatever the container wants: parts go into another one.
    context.flags |= load_pyav().codec.context.Flags.global_header
    if settings.codec == "libvpx-vp9":
        # Without it, the quality is only an upper limit.
        context.bit_rate = 0
    return stream


class PartWriter:
    """One part of a film, encoded by itself: it begins with a key frame and needs no other part.

    path: of a file that is written; who wants it whole or not at all takes care of that.
    """

    def __init__(self, path: Path, settings: EncoderSettings) -> None:
        av = load_pyav()
        self._settings, self._count = settings, 0
        self._container = av.open(f"file:{path}", "w", format=part_container(settings.codec))
        self._stream = add_encoder_stream(self._container, settings)
        self._reformatter = av.video.reformatter.VideoReformatter()

    def encodable(self, pixels: Array) -> Any:
        """Return what `write` takes: (H, W, 3) uint8 or uint16 of the settings' size, in the encoder's format."""
        kind = "rgb24" if pixels.dtype.itemsize == 1 else "rgb48le"
        frame = load_pyav().VideoFrame.from_ndarray(pixels, kind)
        settings = self._settings
        is_rgb = load_pyav().VideoFormat(settings.pixel_format).is_rgb
        return self._reformatter.reformat(
            frame,
            format=settings.pixel_format,
            dst_colorspace=None if is_rgb else settings.colours.matrix,
            dst_color_range=settings.colours.range,
            interpolation=INTERPOLATION,
            threads=1,
        )

    def write(self, frame: Any) -> None:
        """frame: of `encodable`; the same may be written again. Raises OSError."""
        colours = self._settings.colours
        frame.pts, frame.time_base, frame.pict_type = self._count, 1 / self._settings.rate, 0
        self._count += 1
        frame.color_primaries, frame.color_trc = colours.primaries, colours.transfer
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            packet.time_base = _PART_STEP
            self._container.mux(packet)

    def close(self) -> None:
        """Write what the encoder still has. Without it the file is of no use."""
        self._mux(self._stream.encode(None))
        self._container.close()


def write_trial(path: Path, settings: EncoderSettings) -> None:
    """Encode a black frame as a part. Raises UsageError where the encoder refuses what it is told."""
    try:
        writer = PartWriter(path, settings)
        writer.write(writer.encodable(np.zeros((settings.height_px, settings.width_px, 3), np.uint8)))
        writer.close()
    except (load_pyav().FFmpegError, ValueError, OverflowError) as error:
        told = " ".join(f"{name}={value}" for name, value in settings.options)
        size = f"{settings.width_px}x{settings.height_px} {settings.pixel_format}"
        why = getattr(error, "strerror", None) or error
        text = printable(f"{settings.codec} refuses {size} {told} ({why})")
        raise UsageError("--codec", text, fix="choose another, or other --crf and --preset") from error
