"""The seam score on pictures whose seams are known."""

from __future__ import annotations

import numpy as np
import pytest

from intsr.errors import UsageError
from intsr.runtime.measure.seams import border_positions, seam_lines, seam_score
from intsr.runtime.tiles.grid import TilePlan, blend_weights, plan_tiles

FACTOR = 4


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """(400, 600, 3): tiles of 64 px with an overlap of 16 cover its 100x150 input in 2 x 3."""
    from skimage.data import coffee

    return np.ascontiguousarray(coffee()[:400, :600])


@pytest.fixture(scope="module")
def plan() -> TilePlan:
    return plan_tiles(100, 150, 64, 16)


def with_steps(image: np.ndarray, plan: TilePlan, levels: int) -> np.ndarray:
    """Every other cell of the grid of borders brighter, as tiles of unequal colour without blending are."""
    rows = border_positions(plan.tops, plan.tile_px, plan.height_px, FACTOR)
    columns = border_positions(plan.lefts, plan.tile_px, plan.width_px, FACTOR)
    y = np.searchsorted(rows, np.arange(image.shape[0]), side="right")
    x = np.searchsorted(columns, np.arange(image.shape[1]), side="right")
    odd = (y[:, None] + x) % 2
    return (image.clip(0, 255 - levels) + (odd * levels)[..., None]).astype(np.uint8)


def test_steps_at_borders_raise_the_score_and_others_do_not(photograph: np.ndarray, plan: TilePlan) -> None:
    assert len(plan.tiles) == 6
    for levels, least, most in ((0, 0.9, 1.1), (6, 1.25, 1.9), (12, 1.9, 3.0), (20, 3.0, 9.0)):
        assert least < seam_score(with_steps(photograph, plan, levels), plan, FACTOR) < most
    shifted = np.roll(with_steps(np.roll(photograph, -17, (0, 1)), plan, 20), 17, (0, 1))
    assert seam_score(shifted, plan, FACTOR) < 1.15


def test_one_seam_is_found_at_its_place(photograph: np.ndarray, plan: TilePlan) -> None:
    image = photograph.clip(0, 235)
    image[:, 256:] += 20
    lines = seam_lines(image, plan, FACTOR)
    worst = max(lines, key=lambda line: line.score)
    assert (worst.axis, worst.position_px) == ("column", 256)
    assert worst.score > 3 > max(line.score for line in lines if line is not worst)


def test_borders_are_starts_and_ends(plan: TilePlan) -> None:
    assert (plan.tops, plan.lefts) == ((0, 36), (0, 43, 86))
    lines = seam_lines(np.zeros((400, 600), np.uint8), plan, FACTOR)
    expected = [*(("row", place) for place in (144, 256)), *(("column", place) for place in (172, 256, 344, 428))]
    assert [(line.axis, line.position_px) for line in lines] == expected


def test_blending_removes_what_tiles_differ_by(photograph: np.ndarray, plan: TilePlan) -> None:
    # Tiles of unequal brightness, put together as the runtime does and with hard edges.
    side = plan.tile_px * FACTOR
    offsets = {(tile.row, tile.column): 12 * ((tile.row + tile.column) % 2) for tile in plan.tiles}
    scores = {}
    for blended in (True, False):
        output = np.zeros(photograph.shape)
        rows = blend_weights(tuple(FACTOR * top for top in plan.tops), side, 400)
        columns = blend_weights(tuple(FACTOR * left for left in plan.lefts), side, 600)
        for tile in plan.tiles:
            place = np.s_[tile.top * FACTOR :, tile.left * FACTOR :]
            part = photograph[place][:side, :side] * 0.9 + offsets[tile.row, tile.column]
            if blended:
                output[place][:side, :side] += part * (rows[tile.row][:, None] * columns[tile.column])[..., None]
            else:
                output[place][:side, :side] = part
        scores[blended] = seam_score(output.round().astype(np.uint8), plan, FACTOR)
    assert scores[True] < 1.1 < 1.4 < scores[False]


def test_one_tile_and_flat_pictures_have_no_seams(photograph: np.ndarray) -> None:
    assert seam_score(photograph, plan_tiles(100, 150, 150, 0), FACTOR) == 1.0
    assert seam_score(np.full((80, 80, 3), 77, np.uint8), plan_tiles(20, 20, 16, 4), FACTOR) == 1.0


def test_every_kind_of_number_gives_the_same(photograph: np.ndarray, plan: TilePlan) -> None:
    image = with_steps(photograph, plan, 6)
    score = seam_score(image, plan, FACTOR)
    assert seam_score(image.astype(np.uint16) * 257, plan, FACTOR) == pytest.approx(score)
    assert seam_score(image.astype(np.float32) / 255, plan, FACTOR) == pytest.approx(score, rel=1e-5)


def test_sizes_that_do_not_belong_together(photograph: np.ndarray, plan: TilePlan) -> None:
    with pytest.raises(UsageError, match="shape \\(399, 600, 3\\); expected 400x600 pixels"):
        seam_score(photograph[:399], plan, FACTOR)
