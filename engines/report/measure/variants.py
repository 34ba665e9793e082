"""Pictures of every kind that a report compares: enlarged, by each engine, given finished, original."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intsr.bundle import read_manifest
from intsr.cli.console import say
from intsr.engines.report.measure.request import ReportRequest
from intsr.errors import ImageError, IntsrError, UsageError
from intsr.files import sha256_from_path
from intsr.manifest import Manifest
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.reader import list_pictures, read_pixels
from intsr.runtime.tiles.enlarge import enlarge

U8 = NDArray[np.uint8]
LR, HR = "lr", "hr"
DEFAULT_RESIZE_FILTER = "bicubic"


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of picture."""

    name: str
    label: str
    # `lr`, `engine`, `outputs` or `hr`.
    kind: str
    # Of an engine, else empty.
    bits: str = ""
    # Of finished pictures and originals; an engine's file.
    path: Path = Path()
    manifest: Manifest | None = None


@dataclass(slots=True)
class Picture:
    """A picture and what is known of it."""

    path: Path
    # Output over input.
    factor: int
    # Of the output.
    width_px: int
    height_px: int
    sha256: str = ""
    # Variant -> wall time of its one run, whole and by stage.
    ms: dict[str, float] = field(default_factory=dict)
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name


def read_rgb(path: Path) -> U8:
    """(H, W, 3) uint8; 16 bits are rounded to 8, grey becomes three equal channels. Raises ImageError."""
    pixels = np.rint(read_pixels(path)).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def variants_of_request(request: ReportRequest) -> tuple[Variant, ...]:
    """In the page's order: enlarged input, full precision, the others as given, original.

    Raises UsageError, BundleError for engines that cannot be read or do not enlarge alike.
    """
    made = [_variant_of_engine(path) for path in request.engines] if request.images else []
    made += [Variant(name, name, "outputs", "", folder) for name, folder in request.outputs.items()]
    taken = {LR, HR}
    for variant in made:
        if variant.name in taken:
            fix = "rename one" if variant.kind == "engine" else "choose another NAME"
            raise UsageError(variant.name, "the name of two kinds of pictures", "names of their own", fix)
        taken.add(variant.name)
    if request.reference is not None and request.reference not in {variant.name for variant in made}:
        raise UsageError("--reference", repr(request.reference), f"one of {', '.join(v.name for v in made)}")
    factors = {variant.manifest.upscale_factor for variant in made if variant.manifest}
    if len(factors) > 1:
        got = f"engines of factors {', '.join(map(str, sorted(factors)))}"
        raise UsageError("intsr report", got, "one factor", "make a report of each")
    made.sort(key=lambda variant: not _is_reference(variant, request.reference))
    first = [Variant(LR, "Low resolution, bicubic", LR)] if request.images and made else []
    last = [Variant(HR, "Original", HR, "", request.hr)] if request.hr and made else []
    return (*first, *made, *last)


def _is_reference(variant: Variant, name: str | None) -> bool:
    return variant.name == name if name is not None else variant.bits == "fp"


def reference_of(variants: Sequence[Variant], name: str | None) -> Variant | None:
    """Find what others are compared with: by name, else the first full-precision engine."""
    return next((variant for variant in variants if _is_reference(variant, name)), None)


def _variant_of_engine(path: Path) -> Variant:
    manifest = read_manifest(path)
    kind = "full precision" if manifest.bits == "fp" else f"{manifest.bits} {manifest.method}"
    return Variant(path.stem, f"{path.stem} ({kind})", "engine", manifest.bits, path, manifest)


class PictureStore:
    """Keeps every picture of every variant in files of exact pixels below `scratch`: one at a time is in memory."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def _path(self, picture: Picture, variant: str) -> Path:
        # Names come from users: a hash keeps any of them a file name.
        key = f"{picture.name}\0{variant}"
        return self._scratch / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"

    def put(self, picture: Picture, variant: str, pixels: U8) -> None:
        np.save(self._path(picture, variant), pixels)

    def get(self, picture: Picture, variant: str) -> U8:
        pixels: U8 = np.load(self._path(picture, variant))
        return pixels


def make_pictures(
    request: ReportRequest, variants: Sequence[Variant], store: PictureStore
) -> tuple[list[Picture], list[dict[str, str]]]:
    """Read, upscale and store everything; what cannot be read is left out: (pictures, [{name, error}, ...]).

    Engines are opened one after the other. Raises UsageError where no picture is left, and whatever an engine raises.
    """
    skipped: list[dict[str, str]] = []
    pictures = []
    # Without --images, the first folder of --outputs names them.
    sources = list_pictures(request.images or next(iter(request.outputs.values())), or_picture=True)
    manifests = [variant.manifest for variant in variants if variant.manifest]
    factor = manifests[0].upscale_factor if manifests else None if request.images else 1
    for path in sources[: request.limit]:
        try:
            pictures.append(_prepared(path, factor, variants, store))
        except ImageError as error:
            say(f"left out: {error}")
            skipped.append({"name": path.name, "error": str(error)})
    if not pictures:
        raise ImageError(request.images or "--outputs", "no picture could be read", skipped[-1]["error"])
    for variant in variants:
        if variant.kind == "engine":
            _run_engine(variant, pictures, store, request)
    return pictures, skipped


def _prepared(path: Path, factor: int | None, variants: Sequence[Variant], store: PictureStore) -> Picture:
    """A picture with all its variants but those that engines make. factor: None for that of a finished picture."""
    source = read_rgb(path)
    given = {v.name: read_rgb(_same_name(v.path, path)) for v in variants if v.kind in ("outputs", HR)}
    if factor is None:
        factor = next(iter(given.values())).shape[0] // source.shape[0]
    height, width = source.shape[0] * factor, source.shape[1] * factor
    for name, pixels in given.items():
        if pixels.shape[:2] != (height, width):
            expected = f"{width}x{height}, {factor} times {path.name}" if factor != 1 else f"{width}x{height}"
            raise ImageError(f"{path.name} of {name}", f"{pixels.shape[1]}x{pixels.shape[0]} pixels", expected)
    picture = Picture(path, factor, width, height, sha256_from_path(path))
    for name, pixels in given.items():
        store.put(picture, name, pixels)
    if variants[0].kind == LR:
        store.put(picture, LR, enlarge(source, factor, DEFAULT_RESIZE_FILTER))
    return picture


def _same_name(folder: Path, path: Path) -> Path:
    """The picture of this name, whatever its suffix."""
    if folder.is_file():
        return folder
    found = next((other for other in list_pictures(folder, or_picture=True) if other.stem == path.stem), None)
    if found is None:
        raise ImageError(path, f"no picture of this name in {folder}")
    return found


def _run_engine(variant: Variant, pictures: Sequence[Picture], store: PictureStore, request: ReportRequest) -> None:
    say(f"upscaling {len(pictures)} pictures with {variant.path.name}")
    with open_engine(variant.path, threads=request.threads, precision=request.precision) as engine:
        for index, picture in enumerate(pictures):
            pixels = read_rgb(picture.path)
            if index == 0:
                # Libraries compile and take memory in their first run: not what a picture costs.
                engine.upscale(pixels[: engine.tile_px, : engine.tile_px], overlap_px=request.overlap_px)
            try:
                result = engine.upscale_with_timings(pixels, overlap_px=request.overlap_px)
            except IntsrError as error:
                raise UsageError(f"{picture.name} with {variant.path.name}", str(error)) from error
            store.put(picture, variant.name, np.asarray(result.image))
            picture.ms[variant.name], picture.stages_ms[variant.name] = result.total_ms, result.stages_ms
