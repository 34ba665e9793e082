"""What a report is to be made of, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, ValidationError, convert

from intsr.errors import UsageError
from intsr.json_files import read_json
from intsr.runtime.pictures.formats.registry import PICTURE_SUFFIXES
from intsr.types import NO_WEIGHT_OPTIONS, WeightOptions

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """The command's options."""

    # A folder.
    calibration: Path | None = None
    # Files, in the page's order.
    engines: tuple[Path, ...] = ()
    # Finished pictures: name -> folder.
    outputs: Mapping[str, Path] = field(default_factory=dict)
    # Low-resolution pictures, and their originals, of the same names.
    images: Path | None = None
    hr: Path | None = None
    # What the calibration saw.
    calibration_images: Path | None = None
    # What the calibration belongs to; with pictures, its layers are measured.
    model: str | None = None
    weights: WeightOptions = NO_WEIGHT_OPTIONS
    # What `intsr bench --json` printed, one mapping a file.
    bench: tuple[Mapping[str, Any], ...] = ()
    # The name of the variant that others are compared with; None for the first full-precision engine.
    reference: str | None = None
    limit: int = 24
    # How many pictures get a slider.
    shown: int = 6
    layer_pictures: int = 4
    threads: int | None = None
    precision: str = "auto"
    overlap_px: int | None = None

    def __post_init__(self) -> None:
        if not (self.calibration or self.engines or self.outputs or self.bench):
            expected = "a calibration folder, .engine files, --outputs NAME=DIR or --bench FILE"
            raise UsageError("intsr report", "nothing to report on", expected)
        if self.hr is not None and not (self.images or self.outputs):
            expected = "--images DIR or --outputs NAME=DIR"
            raise UsageError("--hr", "no pictures to compare the originals with", expected)
        if self.images is not None and not (self.engines or self.outputs or self.calibration):
            expected = "engines, a calibration or --outputs NAME=DIR"
            raise UsageError("--images", "nothing to run them through", expected)
        self.weights.check_belongs(self.model is not None, "--model")
        if self.model is not None and self.calibration is None:
            raise UsageError("--model", "no calibration is given", "a calibration folder, whose layers are measured")
        if self.model is not None and self.layer_images is None:
            expected = "--calibration-images DIR or --images DIR: layers are measured on pictures"
            raise UsageError("--model", "no pictures", expected)

    @property
    def layer_images(self) -> Path | None:
        """Where the pictures are that layers are measured on: the calibration's own where they are given."""
        return self.calibration_images or self.images


def sources_from_paths(paths: Sequence[Path]) -> tuple[Path | None, tuple[Path, ...]]:
    """Arguments of the command line -> (calibration folder or None, engines). Raises UsageError."""
    calibrations = [path for path in paths if path.is_dir()]
    for folder in calibrations:
        if not (folder / CALIBRATION_FILE).is_file():
            expected = "a calibration folder or an .engine file"
            fix = "pictures are given by --images DIR or --outputs NAME=DIR"
            raise UsageError(folder, f"a folder without {CALIBRATION_FILE}", expected, fix)
    if len(calibrations) > 1:
        raise UsageError(calibrations[1], "a second calibration", "one a report", "make a report of each")
    engines = tuple(path for path in paths if not path.is_dir())
    for path in engines:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            raise UsageError(path, "a picture", "an .engine file", "pictures are given by --images")
    return (calibrations[0] if calibrations else None), tuple(dict.fromkeys(engines))


def outputs_from_options(options: Sequence[str]) -> dict[str, Path]:
    """`NAME=DIR`, ... -> name -> folder. Raises UsageError."""
    outputs: dict[str, Path] = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder):
            raise UsageError("--outputs", repr(option), "NAME=DIR", "for example --outputs fp32=pictures/fp32")
        if name in outputs:
            raise UsageError("--outputs", f"{name} twice", "a name of its own for each folder")
        if not Path(folder).is_dir():
            raise UsageError("--outputs", f"no folder {folder}", "a folder of pictures")
        outputs[name] = Path(folder)
    return outputs


@dataclass(frozen=True, slots=True)
class _Measurement:
    """What a report needs of one engine in a benchmark's file."""

    path: str
    median_ms: float
    stages_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Bench:
    engines: Annotated[list[_Measurement], Meta(min_length=1)]


def bench_from_file(path: Path) -> dict[str, Any]:
    """Read what `intsr bench --json` wrote. Raises UsageError for anything else."""
    fix = "make one with: intsr bench ENGINE... --json > bench.json"
    values = read_json(path, dict[str, Any], fix=fix)
    try:
        # The rest of the file is not looked at here.
        convert(values, _Bench)
    except ValidationError as error:
        got, expected = f"no list of measured engines ({error})", "what intsr bench --json prints"
        raise UsageError(path, got, expected, fix) from error
    return values
