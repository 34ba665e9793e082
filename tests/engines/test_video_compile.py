"""`intsr compile` of a video model in floats, and its engine against diffusers' own modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builds import built_in_this_process
from films import FilmKind, scenes, write_film
from PIL import Image
from video_engines import compile_video_engine
from video_models import FRAMES, SIDE_PX, TILE_PX, WIDE, WIDE_VAE, simulated_chunk, stays_float, write_video_model

from intsr.arrays import Array
from intsr.bundle import read_manifest
from intsr.calib.calibration.files import load_calibration
from intsr.calib.data.clips import calibration_clips, list_clips
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.export.graphs import EXPORT_NAME, load_export
from intsr.export.video import chunk_of, export_video_model
from intsr.manifest import ChunkEntry
from intsr.runtime.backends.openvino.int8 import EIGHT_BITS, largest_exact_code
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.engine import open_engine
from intsr.runtime.upscaler import Upscaler
from intsr.runtime.video.chunks import chunks_of
from intsr.runtime.video.clip import ClipRun
from intsr.targets.lowering import LOWERINGS
from intsr.types import VIDEO_NETWORKS, TensorInfo

Intsr = Callable[..., tuple[int, str, str]]
CHUNK = ChunkEntry(FRAMES, 4, 1)
LOSSLESS = FilmKind(codec="ffv1", pixel_format="bgr0", audio="", size=(16, 12))


@pytest.fixture(autouse=True)
def _no_children() -> Iterator[None]:
    with built_in_this_process():
        yield


@pytest.fixture(scope="module")
def model(video_folder: Path) -> VideoModel:
    return load_video_model(str(video_folder))


@pytest.fixture
def engine(video_engine: Path) -> Path:
    return video_engine


class DiffusersBackend(VideoBackend):
    """A chunk by diffusers' own encode, transformer and decode, with Wan's arithmetic around them."""

    def __init__(self, model: VideoModel, chunk: ChunkEntry) -> None:
        frame = TensorInfo("x", (1, 3, 1, SIDE_PX, SIDE_PX), "float32")
        stand_in: Any = SimpleNamespace(entry=SimpleNamespace(inputs=(frame,)), close=lambda: None)
        super().__init__([stand_in] * len(VIDEO_NETWORKS), chunk, "f32")
        self.model = model

    @torch.no_grad()
    def run_chunk(self, x: Array, record: Any = None) -> Iterator[Array]:
        model, spec = self.model, self.model.spec
        mean, deviation = (
            torch.tensor(values)[None, :, None, None, None] for values in (spec.latents_mean, spec.latents_std)
        )
        latents = (model.vae.encode(torch.from_numpy(x)).latent_dist.mode() - mean) / deviation
        timestep = torch.tensor([spec.timestep])
        velocity = model.transformer(latents, timestep, model.context).sample
        yield model.vae.decode((latents - spec.sigma * velocity) * deviation + mean).sample.numpy()


def check_chunk(engine: Path, model: VideoModel, tile_px: int = TILE_PX) -> None:
    side_px = tile_px * SIDE_PX // TILE_PX
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, FRAMES, side_px, side_px)).astype(np.float32)
    with open_engine(engine, tile_px=tile_px) as opened:
        assert isinstance(opened.backend, VideoBackend)
        assert opened.manifest.chunk == CHUNK
        got = np.concatenate(list(opened.backend.run_chunk(x)), axis=2)
    (expected,) = DiffusersBackend(model, CHUNK).run_chunk(x)
    # diffusers clamps, and this says that it has not hidden everything.
    assert (np.abs(got) < 1).mean() > 0.2 and expected.std() > 0.1
    np.testing.assert_allclose(np.clip(got, -1, 1), expected, atol=1e-3)


def test_a_chunk_is_what_diffusers_makes_of_it(engine: Path, model: VideoModel) -> None:
    check_chunk(engine, model)


@pytest.mark.slow
def test_onnx_runtime_does_the_same_and_networks_built_before_are_taken(
    video_folder: Path, model: VideoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--target", "onnxruntime", "--cache", tmp_path / "cache")
    first = compile_video_engine(video_folder, tmp_path / "first.engine", *options)
    check_chunk(first, model)
    again = compile_video_engine(video_folder, tmp_path / "again.engine", *options)
    assert read_manifest(again).sha256 == read_manifest(first).sha256
    assert len(list((tmp_path / "cache").glob("*.plan"))) == len(VIDEO_NETWORKS)


def test_a_films_frames_are_those_of_diffusers(intsr: Intsr, engine: Path, model: VideoModel, tmp_path: Path) -> None:
    film = scenes(11, 0, LOSSLESS.size)
    write_film(tmp_path / "film.mkv", film, LOSSLESS)
    code, _, error = intsr("upscale", engine, tmp_path / "film.mkv", "-o", tmp_path / "large" / "%02d.png")
    assert code == 0, error
    manifest = read_manifest(engine)
    reference = Upscaler(
        backend=DiffusersBackend(model, CHUNK),
        tile_px=TILE_PX,
        overlap_px=manifest.overlap_px,
        upscale_factor=4,
        resize_filter="bicubic",
        color_fix=manifest.color_fix,
    )
    run = ClipRun(reference, 1)
    expected = [frame for chunk in chunks_of(film, FRAMES, 1) for frame in run.finished(chunk)]
    got = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "large").iterdir())]
    assert len(got) == len(expected) == 11
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.astype(int), other, atol=1)


def test_a_dry_run_says_what_is_built(intsr: Intsr, engine: Path, video_folder: Path, tmp_path: Path) -> None:
    options = ("--bits", "fp", "--tile", TILE_PX, "--frames", FRAMES, "--dry-run")
    code, out, error = intsr("compile", video_folder, *options, "--json")
    assert code == 0, error
    plan = {network["name"]: network for network in json.loads(out)["networks"]}
    entries = {entry.name: entry for entry in read_manifest(engine).networks}
    frames, latents = [1, 3, FRAMES, SIDE_PX, SIDE_PX], list(entries["transformer"].inputs[0].shape)
    shapes = {name: (network["input"], network["output"]) for name, network in plan.items()}
    assert shapes == {
        "encoder": (frames, latents),
        "transformer": (latents, latents),
        "decoder": (latents, frames),
    }
    info = json.loads(intsr("info", video_folder, "--frames", FRAMES, "--size", f"{SIDE_PX}x{SIDE_PX}", "--json")[1])
    total = sum(network["parameters"] for network in plan.values())
    constant = next(part for part in info["networks"][0]["components"] if part["name"] == "constant")
    assert total == info["total"]["parameters"] - constant["parameters"]
    assert intsr("compile", video_folder, *options)[1].splitlines()[1].startswith("encoder     ")


def test_the_memory_of_large_frames_is_that_of_builders_that_run_them(intsr: Intsr, video_folder: Path) -> None:
    def peak_bytes(target: str, tile_px: int) -> int:
        given = ("--bits", "fp", "--tile", tile_px, "--target", target, "--dry-run", "--json")
        return int(json.loads(intsr("compile", video_folder, *given)[1])["peak_bytes"])

    # Four frames of 256x256, 160 bytes a value of three channels.
    assert peak_bytes("cpu", 64) - peak_bytes("cpu", 8) == 160 * 3 * 4 * (256**2 - 32**2)
    assert peak_bytes("onnxruntime", 64) == peak_bytes("onnxruntime", 8)


@pytest.mark.slow
def test_integers_of_a_film_are_those_of_the_simulation(intsr: Intsr, tmp_path: Path) -> None:
    """From a film to ranges to an engine, which is nearer to fake-quantized torch than that is to the model."""
    folder = write_video_model(tmp_path / "wide", WIDE, WIDE_VAE)
    model, films = load_video_model(str(folder)), tmp_path / "films"
    films.mkdir()
    write_film(films / "a.mkv", scenes(9, 0, LOSSLESS.size), LOSSLESS)
    ranges = tmp_path / "ranges"
    calibrated = intsr("calibrate", folder, "--method", "maxmin", "--images", films, "--tile", TILE_PX, "-o", ranges)
    assert calibrated[0] == 0, calibrated[2]
    given = ("compile", folder, "--calibration", ranges, "--tile", TILE_PX, "--frames", FRAMES)
    estimate = json.loads(intsr(*given, "--dry-run", "--json")[1])
    assert {network["precision"] for network in estimate["networks"]} == {"w8a8 in int8, the rest float32 or bf16"}
    assert intsr(*given, "-o", tmp_path / "wan.engine")[0] == 0
    (x, *_) = calibration_clips(list_clips(films), model.spec, TILE_PX, FRAMES)
    with open_engine(tmp_path / "wan.engine") as opened:
        assert isinstance(opened.backend, VideoBackend)
        got = np.concatenate(list(opened.backend.run_chunk(x.numpy())), axis=2)
        plans = opened.manifest.build["plans"]
        assert (opened.manifest.bits, opened.manifest.parts) == ("w8a8", ("transformer", "vae"))
    floats = {layer["name"] for plan in plans.values() for layer in plan["float_layers"]}
    shares = [plan["int8_mac_share"] for plan in plans.values()]
    if largest_exact_code() == EIGHT_BITS:
        assert floats == stays_float(floats) and plans["transformer"]["int8_mac_share"] > 0.9 and min(shares) > 0.7
    else:
        assert stays_float(floats) < floats and max(shares) == 0
    calibration = load_calibration(ranges)
    simulated = simulated_chunk(model, calibration, x)
    (expected,) = DiffusersBackend(model, CHUNK).run_chunk(x.numpy())
    from_simulation = np.square(got - simulated).mean()
    assert 0 < from_simulation < np.square(simulated.clip(-1, 1) - expected).mean() < 1e-3


@pytest.mark.slow
def test_the_chunk_of_an_export(model: VideoModel, tmp_path: Path) -> None:
    told: list[str] = []
    written = export_video_model(
        model, None, LOWERINGS["asymmetric"], tmp_path / "onnx", tiles_px=[TILE_PX], frames=1, on_network=told.append
    )
    assert told == ["encoder", "transformer", "decoder"]
    assert load_export(tmp_path / "onnx") == written and (tmp_path / "onnx" / EXPORT_NAME).is_file()
    start, following, transformer, *_ = written.networks
    assert transformer.inputs[0].shape == (1, 16, 1, 4, 4)
    assert [info.shape for info in following.inputs[1:]] == [info.shape for info in following.outputs[1:]]
    assert [info.shape for info in start.outputs[1:]] == [info.shape for info in following.inputs[1:]]


@pytest.mark.slow
def test_an_export_of_two_sizes_is_compiled(
    intsr: Intsr, video_folder: Path, model: VideoModel, tmp_path: Path
) -> None:
    folder, engine = tmp_path / "onnx", tmp_path / "wan.engine"
    given = ("--target", "onnxruntime", "--tile", f"{TILE_PX},{2 * TILE_PX}", "--frames", FRAMES)
    code, out, error = intsr("export", video_folder, *given, "-o", folder, "--json")
    assert code == 0, error
    assert json.loads(out)["chunk"] == {"frames": FRAMES, "frames_per_latent": 4, "overlap_frames": 1}
    names = [f"{name}{of}.onnx" for name in VIDEO_NETWORKS for of in ("", f"@{2 * TILE_PX}")]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, EXPORT_NAME])
    assert intsr("compile", folder, "--target", "onnxruntime", "-o", engine)[0] == 0
    for tile_px in (TILE_PX, 2 * TILE_PX):
        check_chunk(engine, model, tile_px)


@pytest.mark.slow
def test_two_sizes_share_their_weights(video_folder: Path, model: VideoModel, engine: Path, tmp_path: Path) -> None:
    both = compile_video_engine(video_folder, tmp_path / "both.engine", "--tile", f"{TILE_PX},{2 * TILE_PX}")
    manifest = read_manifest(both)
    assert manifest.tile_sizes == (2 * TILE_PX, TILE_PX)
    assert {entry.weights_member for entry in manifest.tiles[0].networks} == {f"{n}.ir" for n in VIDEO_NETWORKS}
    for tile_px in manifest.tile_sizes:
        check_chunk(both, model, tile_px)
    assert both.stat().st_size < 1.5 * engine.stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--frames", 8), "--frames: 8 frames; expected a first frame and whole fours"),
        (("--tile", 10), "--tile: 10 pixels; expected a positive multiple of 4"),
        (("--lora", "a.pkl"), "--lora: together with a video model; expected a picture model"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    intsr: Intsr, video_folder: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    code, _, error = intsr("export", video_folder, *options, "-o", tmp_path / "onnx")
    assert code == 2 and message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra rtx")
def test_plans_for_rtx_run_on_integers(intsr: Intsr, tmp_path: Path) -> None:
    """Built without a GPU: convolutions of frames too, and attention in one kernel."""
    folder, films, ranges = (
        write_video_model(tmp_path / "wide", WIDE, WIDE_VAE),
        tmp_path / "films",
        tmp_path / "w8a8",
    )
    films.mkdir()
    write_film(films / "a.mkv", scenes(5, 0, LOSSLESS.size), LOSSLESS)
    calibrated = intsr("calibrate", folder, "--method", "maxmin", "--images", films, "--tile", TILE_PX, "-o", ranges)
    assert calibrated[0] == 0, calibrated[2]
    engine = tmp_path / "wan.engine"
    given = ("--calibration", ranges, "--target", "tensorrt-rtx", "--tile", TILE_PX, "--frames", FRAMES)
    code, _, error = intsr("compile", folder, *given, "-o", engine)
    assert code == 0, error
    plans = read_manifest(engine).build["plans"]
    floats = {layer["name"] for plan in plans.values() for layer in plan["float_layers"]}
    assert floats == stays_float(floats)
    assert all(plan["fp32_gemms"] == 0 and plan["unmatched_macs"] == 0 for plan in plans.values())
    assert plans["transformer"]["kernels_by_kind"]["mha"] == 2 * WIDE["num_layers"]
    code, out, _ = intsr("inspect", engine, "--layers")
    assert code == 0 and "decoder_next" in out and "correlation" in out


def test_a_quarter_of_a_chunk_is_shared() -> None:
    assert [chunk_of(frames).overlap_frames for frames in (1, 5, 9, 25, 81)] == [0, 1, 2, 6, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "fp", "--frames", 8), "--frames: 8 frames; expected a first frame and whole fours"),
        (("--bits", "fp", "--frames", 0), "--frames: 0 frames"),
        (("--bits", "fp", "--tile", 10), "--tile: 10 pixels; expected a positive multiple of 4"),
        (("--bits", "fp", "--tile", "8,10"), "--tile: 10 pixels; expected a positive multiple of 4"),
        (("--bits", "fp", "--tile", "8,256"), "at most 32 along each axis; take fewer frames or smaller sides"),
        (("--bits", "fp", "--tile", "8,8"), "'--tile': '8,8' is not one or more different sizes"),
        ((), "--bits w8a8 without a calibration; expected one of --calibration DIR, --bits fp"),
        (("--bits", "fp", "--calibration", "."), "--bits: together with --calibration"),
        (("--images", "."), "--images: together with a video model"),
        (("--bits", "fp", "--verify", "."), "no picture; expected files"),
        (("--bits", "fp", "--lora", "a.pkl"), "--lora: together with a video model"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    intsr: Intsr, video_folder: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    code, _, error = intsr("compile", video_folder, *options, "-o", tmp_path / "x.engine")
    assert code == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_frames_are_refused_of_a_picture_model(intsr: Intsr, tiny_folder: Path) -> None:
    code, _, error = intsr("compile", tiny_folder, "--bits", "fp", "--frames", 9, "--dry-run")
    assert code == 2 and "--frames: 9 of a picture model; expected a video model" in error


def test_other_commands_work_with_a_video_engine(intsr: Intsr, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(scenes(1, 0, LOSSLESS.size)[0]).save(tmp_path / "pictures" / "a.png")
    pictures = tmp_path / "pictures"
    code, out, _ = intsr("inspect", engine, "--layers")
    assert code == 0 and "chunk              5 frames, 1 shared" in out and "decoder_next" in out
    assert intsr("extract", engine, "-o", tmp_path / "plans")[0] == 0
    assert (tmp_path / "plans" / "encoder_next.ir").is_file()
    assert intsr("report", engine, "--images", pictures, "-o", tmp_path / "report.html")[0] == 0
