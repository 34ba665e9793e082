"""Several tile sizes in one engine: each computes what it does alone, and the weights are there once."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from builds import built_in_this_process

from intsr.bundle import Bundle, read_manifest
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.engines.builders.openvino_tiles import share_weights
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile import request as compile_request
from intsr.engines.compile.assemble import compile_engine, overlap_of
from intsr.engines.compile.request import checked_tiles
from intsr.engines.inspect.engine import inspect_engine
from intsr.errors import UsageError
from intsr.export.graphs import load_export
from intsr.export.pipeline import export_model
from intsr.runtime.backends.packed import IR_MAGIC, pack_member, split_member, unpack_xml
from intsr.runtime.engine import open_engine
from intsr.targets import lowering_from_name, target_from_name
from intsr.types import NETWORKS

Intsr = Callable[..., tuple[int, str, str]]
DEFAULT_PX, FURTHER_PX = 16, 8
Engines = dict[tuple[str, tuple[int, ...]], Path]


@pytest.fixture(scope="module")
def engines(tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """(target, tile sizes) -> engine."""
    folder = tmp_path_factory.mktemp("tiles")
    paths = {}
    for tiles in ((DEFAULT_PX,), (FURTHER_PX,), (DEFAULT_PX, FURTHER_PX)):
        first, *further = tiles
        exported = folder / "-".join(map(str, tiles))
        # Both targets take this lowering.
        lowering = lowering_from_name("cpu")
        export_model(tiny_model, tiny_calibration, lowering, first, exported, further_tiles=further)
        for target in ("cpu", "onnxruntime"):
            paths[target, tiles] = folder / f"{exported.name}.{target}.engine"
            with built_in_this_process():
                compile_engine(exported, paths[target, tiles], BuildOptions(target, detailed=False))
    return paths


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
@pytest.mark.parametrize("tile_px", [pytest.param(DEFAULT_PX, marks=pytest.mark.slow), FURTHER_PX])
def test_a_size_computes_what_it_does_alone(engines: Engines, target: str, tile_px: int) -> None:
    rng, precision = np.random.default_rng(tile_px), "f32" if target == "cpu" else "auto"
    with (
        open_engine(engines[target, (DEFAULT_PX, FURTHER_PX)], 1, precision, tile_px=tile_px) as several,
        open_engine(engines[target, (tile_px,)], 1, precision) as alone,
    ):
        assert several.tile_px == alone.tile_px == tile_px
        for name in NETWORKS:
            x = rng.uniform(-1, 1, alone.network(name).input.shape).astype(np.float32)
            got, expected = (engine.network(name).run(x) for engine in (several, alone))
            # Two files: rounding, and a code here and there that it moves across a tie.
            assert np.abs(got - expected).mean() <= 1e-4 * np.ptp(expected), name


def test_weights_are_there_once(engines: Engines) -> None:
    both, alone = (engines["cpu", tiles] for tiles in ((DEFAULT_PX, FURTHER_PX), (DEFAULT_PX,)))
    with Bundle(both) as bundle, Bundle(alone) as single:
        sizes, before = bundle.sizes_bytes(), single.sizes_bytes()
        for name in NETWORKS:
            # Shapes, and numbers of pixels that means are taken over.
            assert 0 < sizes[f"{name}.ir"] - before[f"{name}.ir"] < 1000
            assert sizes[f"{name}@{FURTHER_PX}.xml.gz"] < before[f"{name}.ir"] / 10
    manifest = read_manifest(both)
    assert set(manifest.sha256) == {*(f"{name}.ir" for name in NETWORKS), *(f"{n}@8.xml.gz" for n in NETWORKS)}
    assert [entry.weights_member for entry in manifest.tiles[0].networks] == [f"{name}.ir" for name in NETWORKS]
    with Bundle(engines["onnxruntime", (DEFAULT_PX, FURTHER_PX)]) as bundle:
        assert bundle.sizes_bytes()["unet@8.onnx"] > 0.9 * bundle.sizes_bytes()["unet.onnx"]


def test_reopening(engines: Engines) -> None:
    engine = open_engine(engines["cpu", (DEFAULT_PX, FURTHER_PX)], threads=1)
    assert (engine.tile_px, engine.overlap_px, engine.tile_sizes) == (16, 8, (16, 8))
    assert engine.reopen(16) is engine
    with pytest.raises(UsageError, match="--tile: 12 pixels; expected 16 or 8"):
        engine.reopen(12)
    picture = np.random.default_rng(1).integers(0, 256, (20, 12, 3), np.uint8)
    assert engine.upscale(picture).shape == (80, 48, 3)
    smaller = engine.reopen(8)
    assert (smaller.tile_px, smaller.overlap_px, smaller.tile_sizes, smaller.options.threads) == (8, 4, (16, 8), 1)
    assert smaller.upscale(picture).shape == (80, 48, 3)
    smaller.close()
    back = smaller.reopen(16)
    assert (back.tile_px, back.overlap_px) == (16, 8)
    back.close()


def test_hashes_are_checked_once_for_a_file_that_stays_the_same(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy.engine"
    path.write_bytes(engines["cpu", (DEFAULT_PX, FURTHER_PX)].read_bytes())
    checks = []
    check = Bundle._check_hashes
    monkeypatch.setattr(Bundle, "_check_hashes", lambda bundle: checks.append(1) or check(bundle))
    engine = open_engine(path).reopen(8)
    assert len(checks) == 1
    path.write_bytes(engines["cpu", (DEFAULT_PX, FURTHER_PX)].read_bytes())
    engine.reopen(16).close()
    assert len(checks) == 2


def test_inspect_and_export_tell_the_sizes(engines: Engines, intsr: Intsr) -> None:
    both = engines["cpu", (DEFAULT_PX, FURTHER_PX)]
    assert inspect_engine(both, layers=False)["tile_sizes"] == [16, 8]
    assert "tile sizes         16, 8" in intsr("inspect", both)[1]
    assert "tile sizes" not in intsr("inspect", engines["cpu", (DEFAULT_PX,)])[1]
    export = load_export(both.with_name("16-8"))
    assert [tile.tile_px for tile in export.tiles] == [8]
    assert export.tiles[0].networks[2].output.shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_the_command(intsr: Intsr, tiny_folder: Path, tmp_path: Path) -> None:
    given = ("compile", tiny_folder, "--bits", "fp", "-o", tmp_path / "x.engine", "--json")
    code, output, error = intsr(*given, "--tile", "8,16")
    assert code == 0, error
    assert json.loads(output)["tile_px"] == [16, 8]
    manifest = read_manifest(tmp_path / "x.engine")
    assert (manifest.tile_px, [tile.tile_px for tile in manifest.tiles]) == (8, [16])


def test_what_is_built_where_nothing_is_asked_for(tiny_model: SRModel) -> None:
    cpu, rtx = target_from_name("cpu"), target_from_name("tensorrt-rtx")
    assert checked_tiles(None, cpu, tiny_model.spec) == (128, 64)
    assert checked_tiles(None, rtx, tiny_model.spec) == (128,)
    # Networks that take whole multiples of 128 alone have no smaller size; one that is asked for is refused.
    coarse = replace(tiny_model.spec, size_multiple_px=512)
    assert checked_tiles(None, cpu, coarse) == (128,)
    with pytest.raises(UsageError, match="--tile: 64 pixels; expected a positive multiple of 128; use 128"):
        checked_tiles((128, 64), cpu, coarse)


def test_an_official_checkpoint_has_one_size(
    intsr: Intsr, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = SimpleNamespace(folding="passionsr", tile_px=16)
    monkeypatch.setattr(compile_request, "_ranges", lambda *_: imported)
    asked = []

    def export(*arguments: object, further_tiles: list[int], **_: object) -> None:
        asked.append((arguments[3], further_tiles))
        raise UsageError("here", "enough")

    monkeypatch.setattr(compile_request, "export_model", export)
    given = ("compile", tiny_folder, "--calibration", tmp_path, "-o", tmp_path / "x.engine")
    problem = "--tile: {}; expected 16, the one size that the checkpoint was made for"
    for tiles in ("16,8", "8", "32"):
        code, _, error = intsr(*given, "--tile", tiles)
        assert code == 2 and problem.format(tiles) in error
    # The default's first size is not silently changed, its further ones are left out.
    assert problem.format(128) in intsr(*given)[2]
    assert asked == []
    imported.tile_px = 128
    assert "here: enough" in intsr(*given)[2]
    assert asked == [(128, [])]


def test_overlap_of_a_further_size() -> None:
    assert [overlap_of(tile) for tile in (256, 128, 64, 32, 16, 8)] == [32, 16, 8, 8, 8, 4]


def _member(path: Path, constants: list[tuple[str, bytes]]) -> Path:
    """A packed IR whose weights are those of named Const layers, the last of them in an inner graph."""
    layers, weights = [], b""
    for name, content in constants:
        data = f'<data element_type="u8" offset="{len(weights)}" size="{len(content)}"/>'
        layers.append(f'<layer name="{name}" type="Const">{data}</layer>')
        weights += content
    other = '<layer name="x" type="Pad"><data offset="0" size="3"/></layer>'
    inner = f'<layer name="loop" type="TensorIterator"><body><layers>{layers.pop()}</layers></body></layer>'
    path.with_suffix(".xml").write_text(f"<net><layers>{other}{''.join(layers)}{inner}</layers></net>")
    path.with_suffix(".bin").write_bytes(weights)
    pack_member(IR_MAGIC, path.with_suffix(".xml"), path.with_suffix(".bin"), path)
    return path


def _constants(xml: bytes, weights: bytes) -> dict[str, bytes]:
    found = {}
    for layer in ElementTree.fromstring(xml).iter("layer"):
        data = layer.find("data")
        if data is not None:
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            found[layer.attrib["name"]] = weights[start : start + size]
    return found


def test_constants_are_found_by_what_they_hold(tmp_path: Path) -> None:
    kernel, bias, shape = b"kernel" * 9, b"bias", struct.pack("<2q", 4, 4)
    first = _member(tmp_path / "first", [("k", kernel), ("b", bias), ("s", shape)])
    other = [("s2", b"size"), ("renamed", bias), ("k", kernel), ("twice", b"size"), ("inner", b"new")]
    paths = [_member(tmp_path / "a", other), _member(tmp_path / "b", [("s3", b"size"), ("s4", shape)])]
    share_weights(first, paths)
    with memoryview(first.read_bytes()) as view:
        xml, shared = split_member(IR_MAGIC, view, "first")
        weights = bytes(shared)
    assert weights == kernel + bias + shape + b"size" + b"new"
    assert _constants(xml, weights) == {"k": kernel, "b": bias, "s": shape, "x": b"ker"}
    for path, expected in zip(paths, (dict(other), {"s3": b"size", "s4": shape}), strict=True):
        got = _constants(unpack_xml(memoryview(path.read_bytes()), path), weights)
        # What only looks like a constant stays as it is.
        assert got.pop("x") == b"ker"
        assert got == expected
