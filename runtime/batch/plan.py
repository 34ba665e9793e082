"""What a batch will cost, from headers alone: the tile at which it costs least, and what each picture becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from intsr.errors import ImageError
from intsr.manifest import Manifest
from intsr.runtime.batch.files import with_header
from intsr.runtime.batch.films import checked_settings
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.films.encode import even_size
from intsr.runtime.films.header import film_header, open_source
from intsr.runtime.films.names import is_sequence
from intsr.runtime.pictures.reader import read_header
from intsr.runtime.pictures.writer import check_pixels_fit
from intsr.runtime.tiles.grid import TilePlan, plan_tiles
from intsr.runtime.tiles.growth import check_growth, grown_size

# Enough to know what a folder is like.
_PICTURES_LOOKED_AT = 100
# A larger tile knows more of the picture: a smaller one has to save as much.
_WORTH_A_SMALLER_TILE = 0.8


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """One picture of a dry run. width, height: of the output. redundancy: of `TilePlan`."""

    input: str
    output: str
    status: str
    width: int
    height: int
    tile_px: int
    overlap_px: int
    tiles: int
    redundancy: float
    # Of a film, about how many; else None.
    frames: int | None = None


def cheapest_tile(manifest: Manifest, sizes: Iterable[tuple[int, int]], overlap_px: int | None = None) -> int:
    """Return the tile size at which the first pictures cost least, of the engine's default and smaller ones.

    A picture that fits into a tile of half the side costs a quarter there. sizes: height and width of each picture,
    pixels. overlap_px: None for each size's own.
    """
    usual = manifest.tile_px
    if all(entry.tile_px >= usual for entry in manifest.all_tiles):
        return usual
    factor, least = manifest.upscale_factor, manifest.min_side_px
    grown = [grown_size(*size, factor, least) for size in islice(sizes, _PICTURES_LOOKED_AT)]
    costs: dict[int, int] = {}
    for entry in manifest.all_tiles:
        overlap = entry.overlap_px if overlap_px is None else overlap_px
        if entry.tile_px <= manifest.tile_px and overlap < entry.tile_px:
            plans = (plan_tiles(*size, entry.tile_px, overlap) for size in grown)
            costs[entry.tile_px] = sum(_computed_px(plan) for plan in plans)
    best = min(costs, key=lambda tile_px: (costs[tile_px], -tile_px), default=usual)
    return best if costs and costs[best] < _WORTH_A_SMALLER_TILE * costs.get(usual, 0) else usual


def picture_sizes(jobs: Iterable[Job]) -> Iterator[tuple[int, int]]:
    """Yield height and width of every picture whose header can be read, pixels."""
    for header in (job.header for job in map(with_header, jobs)):
        if header is not None:
            yield header.height_px, header.width_px


def planned_picture(
    job: Job, manifest: Manifest, options: FileOptions, named: Callable[[str], str] = str
) -> PlannedPicture:
    """Read the header, and compute nothing. manifest: at the tile that is used. named: what a path is called for
    people. Raises ImageError.
    """
    if job.problem:
        raise ImageError(job.source, f"{job.output} {job.problem}")
    header = (film_header if job.is_film else read_header)(job.source)
    width, height = options.output_size(header.width_px, header.height_px, manifest.upscale_factor)
    if not job.is_film:
        check_pixels_fit(width, height, header.channels, header.bits, job.output)
    elif not is_sequence(job.output):
        with open_source(job.source, options.film) as source:
            checked_settings(source, options, job.output, (width, height))
        width, height = even_size((width, height))
    overlap_px = manifest.overlap_px if options.overlap_px is None else options.overlap_px
    grows = header.height_px, header.width_px, manifest.upscale_factor, manifest.min_side_px
    check_growth(*grows, job.source)
    plan = plan_tiles(*grown_size(*grows), manifest.tile_px, overlap_px)
    paths = named(str(job.source)), named(str(job.output))
    facts = *paths, "planned", width, height, plan.tile_px, overlap_px, len(plan.tiles), round(plan.redundancy, 3)
    return PlannedPicture(*facts, header.details.frames if job.is_film else None)


def _computed_px(plan: TilePlan) -> int:
    return len(plan.tops) * len(plan.lefts) * plan.tile_px**2
