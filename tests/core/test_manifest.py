"""A manifest checks itself, reads what it wrote, and refuses everything else in one line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from intsr.errors import BundleError, EngineMismatchError, UsageError
from intsr.manifest import Manifest, NetworkEntry, TileEntry, manifest_from_json
from intsr.types import TensorInfo


def _read(manifest: Manifest, **changes: Any) -> Manifest:
    return manifest_from_json(json.dumps({**asdict(manifest), **changes}).encode(), "here")


def _with_tiles(manifest: Manifest, *sizes: int) -> Manifest:
    return replace(manifest, tiles=tuple(TileEntry(size, 2, manifest.networks) for size in sizes))


def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert _read(manifest) == manifest
    several = _with_tiles(manifest, 8, 32)
    assert _read(several) == several


def test_networks_are_any_number_of_any_rank(manifest: Manifest) -> None:
    frames, cond = TensorInfo("frames", (1, 3, 8, 64, 64), "float16"), TensorInfo("cond", (77,), "int64")
    entry = NetworkEntry("transformer", "t.plan", (frames, cond), (frames,))
    video = replace(manifest, networks=(entry,))
    assert _read(video).networks == (entry,)
    assert video.network_names == ("transformer",)
    assert entry.output == frames
    with pytest.raises(EngineMismatchError, match="network transformer: 2 inputs; expected one"):
        _ = entry.input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema version 1; expected 2; compile the model again"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"overlap_px": 16}, "overlap_px 16 is not below tile_px 16"),
        ({"tile_px": 0}, r"tile_px`"),
        ({"upscale_factor": 1 << 31}, r"upscale_factor`"),
        ({"color_fix": "sepia"}, "color_fix 'sepia'"),
        ({"resize_filter": "nearest"}, "resize_filter 'nearest'"),
        ({"networks": []}, r"networks are \[\]"),
    ],
)
def test_other_values_are_one_line(manifest: Manifest, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        _read(manifest, **changes)
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": ""}, "member`"),
        ({"inputs": [{"name": "x", "shape": [1, 0], "dtype": "float32"}]}, r"inputs\[0\].shape\[1\]"),
        ({"inputs": [{"name": "x", "shape": [1], "dtype": "float99"}]}, "dtype`"),
        ({"name": "unet"}, "networks are .*expected one or more of different names"),
    ],
)
def test_other_networks_are_one_line(manifest: Manifest, change: dict[str, Any], message: str) -> None:
    networks = [asdict(entry) for entry in manifest.networks]
    with pytest.raises(BundleError, match=message):
        _read(manifest, networks=[networks[0] | change, *networks[1:]])


def test_a_manifest_at_another_tile(manifest: Manifest) -> None:
    assert manifest.tile_sizes == (16,)
    several = _with_tiles(manifest, 8, 32)
    assert several.tile_sizes == (32, 16, 8)
    assert several.at_tile(None) is several.at_tile(16) is several
    small = several.at_tile(8)
    assert (small.tile_px, small.overlap_px, small.tile_sizes) == (8, 2, (32, 16, 8))
    assert set(small.tiles) == {TileEntry(16, 4, manifest.networks), TileEntry(32, 2, manifest.networks)}
    assert small.at_tile(16).overlap_px == manifest.overlap_px
    with pytest.raises(UsageError) as caught:
        several.at_tile(96)
    expected = "--tile: 96 pixels; expected 32 or 16 or 8, which the engine holds; compile it with --tile 96"
    assert str(caught.value) == expected


def test_tiles_check_themselves(manifest: Manifest) -> None:
    for sizes in ((16,), (8, 8)):
        with pytest.raises(ValueError, match="one size twice"):
            _with_tiles(manifest, *sizes)
    with pytest.raises(ValueError, match="overlap_px 2 is not below tile_px 2"):
        _with_tiles(manifest, 2)
    with pytest.raises(ValueError, match="networks of tile 8 are"):
        replace(manifest, tiles=(TileEntry(8, 2, manifest.networks[::-1]),))
