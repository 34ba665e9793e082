"""How much a picture's look depends on the tile: tiled against untiled, and seams, for every tile an engine holds.

    intsr compile demo --calibration DIR --tile 128,352,256,64 -o tiles.engine
    python examples/tile_sizes.py tiles.engine PICTURE...

Of each picture the 352x352 pixels in its middle are upscaled: as one tile of 352 pixels, which has no borders, and
then with every smaller tile and several overlaps. docs/use/tiles.md has the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from intsr.arrays import Array
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.metrics import psnr_db
from intsr.runtime.measure.seams import seam_score
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.tiles.grid import plan_tiles

# Three tiles of 128 an axis that share 16 pixels, four that share 32.
SIDE_PX = 352
OVERLAPS = (1 / 16, 1 / 8, 1 / 4, 3 / 8)


def main() -> None:
    engine_path, pictures = Path(sys.argv[1]), [_middle(Path(name)) for name in sys.argv[2:]]
    with open_engine(engine_path, tile_px=SIDE_PX) as engine:
        factor, sizes = engine.upscale_factor, engine.tile_sizes
        untiled = [np.asarray(engine.upscale(picture)) for picture in pictures]
    print("| tile | overlap | tiles of a 352x352 picture | PSNR to untiled, dB: mean | worst | seams: mean | worst |")
    print("|---|---|---|---|---|---|---|")
    for tile_px in sorted(size for size in sizes if size < SIDE_PX):
        with open_engine(engine_path, tile_px=tile_px) as engine:
            for part in OVERLAPS:
                overlap_px = round(tile_px * part)
                outputs = [np.asarray(engine.upscale(picture, overlap_px=overlap_px)) for picture in pictures]
                _row(tile_px, overlap_px, factor, outputs, untiled)


def _middle(path: Path) -> Array:
    pixels = read_image(path).pixels
    top, left = ((side - SIDE_PX) // 2 for side in pixels.shape[:2])
    if min(top, left) < 0:
        raise SystemExit(f"{path}: smaller than {SIDE_PX}x{SIDE_PX}")
    return np.ascontiguousarray(pixels[top : top + SIDE_PX, left : left + SIDE_PX])


def _row(tile_px: int, overlap_px: int, factor: int, outputs: list[Array], untiled: list[Array]) -> None:
    """seams: the score of the tiled picture over that of the untiled one at the same lines."""
    plan = plan_tiles(SIDE_PX, SIDE_PX, tile_px, overlap_px)
    pairs = list(zip(outputs, untiled, strict=True))
    decibels = [psnr_db(output.astype(float), whole.astype(float)) for output, whole in pairs]
    seams = [seam_score(output, plan, factor) / seam_score(whole, plan, factor) for output, whole in pairs]
    cells = (tile_px, overlap_px, len(plan.tiles), f"{np.mean(decibels):.2f}", f"{min(decibels):.2f}")
    print("|", " | ".join(map(str, cells)), "|", f"{np.mean(seams):.3f} | {max(seams):.3f} |", flush=True)


if __name__ == "__main__":
    main()
