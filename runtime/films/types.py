"""What a film is: its options, its facts, its frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from intsr.arrays import Array
from intsr.errors import UsageError

# FFmpeg's numbers of ITU-T H.273: no matrix, "not specified", and those that such a film is taken to have.
RGB_MATRIX, UNSPECIFIED, _BT709, _BT601 = 0, 2, 1, 6
# From so many rows on it is taken for HD, as players do.
_HD_ROWS = 720


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmOptions:
    """What holds for all films of a batch. Raises UsageError."""

    # FFmpeg's name of an encoder, its quality and its speed; None for what fits.
    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    # Frames a second of numbered pictures, which have no time.
    fps: Fraction = Fraction(25)
    # The part of the film that is wanted, seconds; None to its end.
    start_s: Fraction = Fraction(0)
    duration_s: Fraction | None = None

    def __post_init__(self) -> None:
        if self.start_s < 0:
            raise UsageError("--start", f"{float(self.start_s):g}", "seconds from 0 on")
        if self.duration_s is not None and self.duration_s <= 0:
            raise UsageError("--duration", f"{float(self.duration_s):g}", "seconds above 0")
        if self.crf is not None and self.crf < 0:
            raise UsageError("--crf", str(self.crf), "0 or more")


@dataclass(frozen=True, slots=True)
class Colours:
    """What the numbers of a film's pixels mean, in FFmpeg's numbers, which are those of ITU-T H.273.

    range: 1 limited, 2 full. 2 is "not specified" for the others; 0 for the range.
    """

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: int = 0

    def known(self, height_px: int) -> Colours:
        """Return them with a matrix and a range: what a film that does not say is taken to have by its height.

        The output is larger, and a player would take it for something else where it did not say either.
        """
        matrix = self.matrix if self.matrix != UNSPECIFIED else _BT709 if height_px >= _HD_ROWS else _BT601
        return Colours(matrix, self.primaries, self.transfer, self.range or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmFacts:
    """What a film's header and first frame say. Sides are of the upright frame, in square or other pixels."""

    path: Path
    width_px: int
    height_px: int
    # Of the arrays that its frames become: 8 or 16.
    bits: int
    # FFmpeg's name of its frames' format, as stored.
    pixel_format: str
    # Seconds a unit of time, and frames a second on the average.
    time_base: Fraction
    rate: Fraction
    # About so many frames are wanted of it; None where nothing says.
    frames: int | None
    colours: Colours
    # Width of a pixel over its height, upright.
    pixel_aspect: Fraction = Fraction(1)
    # EXIF's numbers, 1 to 8, for what the film's display matrix asks for; undone in its frames.
    orientation: int = 1
    # Mastering display and light levels, as the encoders' options spell them; empty without.
    hdr: tuple[tuple[str, str], ...] = ()
    # What will be lost, for people.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: pixels (H, W, 3) uint8 or uint16, upright; pts and duration in units of the film's time base."""

    pts: int
    pixels: Array
    duration: int


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How frames are encoded. Two streams of equal settings have the same header, so that their packets may follow
    each other. Sides are of the encoded frame.
    """

    codec: str
    options: tuple[tuple[str, str], ...]
    pixel_format: str
    width_px: int
    height_px: int
    rate: Fraction
    time_base: Fraction
    colours: Colours
    pixel_aspect: Fraction

    def to_json(self) -> dict[str, Any]:
        """Return plain data that tells two settings apart."""
        return {
            "codec": self.codec,
            "options": dict(self.options),
            "pixel_format": self.pixel_format,
            "size": [self.width_px, self.height_px],
            "time": [str(self.rate), str(self.time_base), str(self.pixel_aspect)],
            "colours": [self.colours.matrix, self.colours.primaries, self.colours.transfer, self.colours.range],
        }
