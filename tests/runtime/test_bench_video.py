"""`intsr bench` of video engines: chunks of frames, networks of first and further frames apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from video_engines import SIDE_PX, TILE_PX, write_video_engine

from intsr.errors import EXIT_USAGE
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.benchmark import bench_clip, bench_picture
from intsr.runtime.tiles.stage_clock import VIDEO_STAGES
from intsr.runtime.video.clip import chunk_with_timings

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--size", 24, "--min-seconds", 0.01, "--min-runs", 2, "--threads", 1)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tuple(write_video_engine(tmp_path_factory.mktemp(target), target) for target in ("onnxruntime", "cpu"))


def test_a_chunk_is_measured_network_by_network(intsr: Run, engines: tuple[Path, Path], tmp_path: Path) -> None:
    files = ("--csv", tmp_path / "a.csv", "--markdown", tmp_path / "a.md")
    code, out, error = intsr("bench", *engines, *QUICK, "--precision", "f32", *files, "--json")
    assert code == 0, error
    result = json.loads(out)
    assert [engine["target"] for engine in result["engines"]] == ["onnxruntime", "cpu"]
    for engine in result["engines"]:
        stages = engine["stages_ms"]
        assert tuple(stages) == VIDEO_STAGES and min(stages.values()) > 0
        networks = [ms for name, ms in stages.items() if name not in ("resize", "blend", "color_fix")]
        assert engine["networks_ms"] == pytest.approx(sum(networks), rel=0.5)
        assert (engine["chunk_frames"], engine["shared_frames"], engine["tiles"]) == (9, 3, 4)
        # Of a chunk six frames are new.
        assert engine["images_per_s"] == pytest.approx(6e3 / engine["mean_ms"])
        pixels = engine["images_per_s"] * (2 * 24) ** 2
        assert engine["output_megapixels_per_s"] == pytest.approx(pixels / 1e6)
        assert engine["opened_bytes"] is not None and engine["engine_bytes"] > 0
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["stage_decoder_next_ms"]) > 0 for row in rows] == [True, True]
    text = (tmp_path / "a.md").read_text()
    assert "a chunk of 9 frames, 3 of them shared, of 24x24, 4 tiles:" in text
    assert "| frames/s |" in text and "| decoder_start |" in text and "images/s" not in text


def test_what_a_run_gives_is_the_enlarged_chunk(engines: tuple[Path, Path]) -> None:
    clip = bench_clip(5, TILE_PX, TILE_PX)
    assert (clip[0] == bench_picture(TILE_PX, TILE_PX)).all() and (clip[1] != clip[0]).any()
    with open_engine(engines[0]) as engine:
        result = chunk_with_timings(engine, clip)
        expected = [engine.upscale(frame) for frame in clip]
    assert np.shape(result.image) == (5, SIDE_PX, SIDE_PX, 3)
    np.testing.assert_allclose(np.asarray(result.image, int), np.stack(expected), atol=1)
    assert result.tiles == 1 and sum(result.stages_ms.values()) <= result.total_ms


def test_pictures_and_chunks_do_not_mix(
    intsr: Run, engines: tuple[Path, Path], identity_engine: Path, tmp_path: Path
) -> None:
    code, out, error = intsr("bench", engines[0], identity_engine, *QUICK)
    assert code == EXIT_USAGE and out == "" and error.count("\n") == 1
    assert f"{identity_engine}: pictures" in error
    assert "engines of pictures alone, or of chunks of one length" in error
    other = write_video_engine(tmp_path, chunk_frames=5, overlap_frames=1)
    code, _, error = intsr("bench", engines[0], other, *QUICK)
    assert code == EXIT_USAGE and "chunks of 9 frames, 3 shared" in error and "chunks of 5 frames, 1 shared" in error


def test_layers_are_those_of_a_run_of_each_network(intsr: Run, engines: tuple[Path, Path]) -> None:
    code, out, error = intsr("bench", engines[1], *QUICK, "--layers", "--json")
    assert code == 0, error
    (engine,) = json.loads(out)["engines"]
    assert {row["network"] for row in engine["layers"]} >= {"encoder_next", "transformer", "decoder_next"}


@pytest.mark.slow
def test_torch_beside_it(intsr: Run, video_engine: Path, video_folder: Path) -> None:
    options = ("--size", 8, "--min-seconds", 0.01, "--min-runs", 1, "--threads", 1)
    code, out, error = intsr("bench", video_engine, *options, "--reference", video_folder, "--json")
    assert code == 0, error
    own, reference = json.loads(out)["engines"]
    assert (own["target"], reference["target"], reference["chunk_frames"]) == ("cpu", "torch", 5)
    assert min(reference["stages_ms"].values()) > 0
    given = ("--reference", video_folder, "--lora", "a.pkl")
    code, _, error = intsr("bench", video_engine, *options, *given)
    assert code == EXIT_USAGE and "--lora: together with a video model" in error
