"""How `intsr upscale` makes one file of another."""

from __future__ import annotations

from dataclasses import dataclass, field

from intsr.errors import UsageError
from intsr.runtime.films.types import FilmOptions

_MOST_TIMES = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """What holds for all pictures of a batch. Raises UsageError."""

    # Colour fix, and input pixels that tiles share; None for the engine's.
    color_fix: str | None = None
    overlap_px: int | None = None
    # How many times as large the output is; None for the engine's factor.
    outscale: float | None = None
    # 1 to 100, of JPEG, WebP and AVIF; None for each format's own.
    quality: int | None = None
    # EXIF, XMP, ICC and IPTC.
    keep_metadata: bool = True
    # What the whole process may take; None for what is free.
    memory_bytes: int | None = None
    # Replace an output that is there by the time it is done.
    overwrite: bool = True
    film: FilmOptions = field(default_factory=FilmOptions)

    def __post_init__(self) -> None:
        if self.outscale is not None and not 0 < self.outscale <= _MOST_TIMES:
            raise UsageError("--outscale", str(self.outscale), f"above 0, up to {_MOST_TIMES:g}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError("--quality", str(self.quality), "1 to 100")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise UsageError("--memory", f"{self.memory_bytes} bytes", "more than 0")

    def output_size(self, width_px: int, height_px: int, upscale_factor: int) -> tuple[int, int]:
        """Width and height of the file that a picture of this size becomes."""
        times = float(upscale_factor) if self.outscale is None else self.outscale
        return max(round(width_px * times), 1), max(round(height_px * times), 1)
