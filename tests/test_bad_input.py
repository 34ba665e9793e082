"""Every listed bad input, through the command: one line on stderr, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builds import built_in_this_process
from PIL import Image

from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.export.pipeline import export_model
from intsr.targets.lowering import LOWERINGS

Run = Callable[..., tuple[int, str, str]]
TILE_PX = 16


@pytest.fixture(scope="module")
def workshop(tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration, an export, an engine and two pictures, all good."""
    folder = tmp_path_factory.mktemp("workshop")
    save_calibration(tiny_calibration, folder / "calibration")
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], TILE_PX, folder / "onnx")
    with built_in_this_process():
        compile_engine(folder / "onnx", folder / "tiny.engine", BuildOptions("cpu"))
    (folder / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / name)
    return folder


@pytest.fixture
def bench_top(workshop: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(workshop, tmp_path / "work"))


def assert_one_line(result: tuple[int, str, str], code: int, *words: str) -> None:
    got, _, stderr = result
    errors = [line for line in stderr.splitlines() if line.startswith("intsr: error:")]
    assert got == code, stderr
    assert len(errors) == 1, stderr
    assert all(word in errors[0] for word in words), errors[0]


def test_bad_pictures_fail_alone(intsr: Run, bench_top: Path) -> None:
    pictures, out = bench_top / "pictures", bench_top / "out"
    # 20000 x 20000 grey pixels of one bit: 50 MB decoded to bits, 400 megapixels, a file of a few kilobytes.
    Image.new("1", (20000, 20000)).save(pictures / "huge.png", optimize=True)
    whole = (pictures / "a.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    code, shown, _ = intsr("upscale", bench_top / "tiny.engine", pictures, "-o", out, "--json", "-q")
    errors = {Path(line["input"]).name: line["error"] for line in map(json.loads, shown.splitlines())}
    assert code == 1 and errors["a.png"] is None and errors["b.png"] is None
    for name in ("huge.png", "truncated.png"):
        assert name in errors[name] and "\n" not in errors[name]
    assert {path.name: Image.open(path).size for path in out.iterdir()} == dict.fromkeys(("a.png", "b.png"), (80, 96))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite_manifest(path: Path, **changes: object) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


RTX = {"target": "tensorrt-rtx", "library": "tensorrt-rtx", "library_version": "1.7.1"}


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (Path.unlink, 2, ["no such file"]),
        (flip_a_byte, 2, ["altered"]),
        (lambda path: rewrite_manifest(path, **RTX), 3, ["plan starts with", "of tensorrt-rtx"]),
        (lambda path: rewrite_manifest(path, library_version="2099.1.0"), 3, ["2099.1.0"]),
    ],
)
def test_an_engine_that_cannot_be_used(
    intsr: Run, bench_top: Path, spoil: Callable[[Path], None], code: int, words: list[str]
) -> None:
    spoil(bench_top / "tiny.engine")
    result = intsr("upscale", bench_top / "tiny.engine", bench_top / "pictures", "-o", bench_top / "out")
    assert_one_line(result, code, "tiny.engine", *words)
    assert not (bench_top / "out").exists()


def test_a_calibration_of_another_model(intsr: Run, bench_top: Path, tiny_folder: Path) -> None:
    other = Path(shutil.copytree(tiny_folder, bench_top / "other"))
    settings = json.loads((other / "intsr_model.json").read_text()) | {"timestep": 500}
    (other / "intsr_model.json").write_text(json.dumps(settings))
    result = intsr(
        "compile", other, "--calibration", bench_top / "calibration", "--tile", TILE_PX, "-o", bench_top / "x.engine"
    )
    assert_one_line(result, 2, "digest", "intsr calibrate")
    assert not (bench_top / "x.engine").exists()


def test_an_engine_is_not_verified_against_another_calibration(
    intsr: Run, bench_top: Path, tiny_folder: Path, tiny_calibration: Calibration
) -> None:
    save_calibration(replace(tiny_calibration, method="other"), bench_top / "other")
    arguments = ("--against", bench_top / "other", "--model", tiny_folder, "--images", bench_top / "pictures")
    assert_one_line(intsr("verify", bench_top / "tiny.engine", *arguments), 2, "digest")


def test_an_onnx_whose_data_lies_outside_its_folder(intsr: Run, bench_top: Path) -> None:
    path = bench_top / "onnx" / "encoder.onnx"
    (bench_top / "secret.bin").write_bytes(b"\0" * 4096)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 100)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    result = intsr("compile", bench_top / "onnx", "-o", bench_top / "x.engine")
    assert_one_line(result, 2, "../secret.bin")
    assert not (bench_top / "x.engine").exists()


OPTIONS_WITHOUT_EFFECT = (
    ("onnx", ("--bits", "w4a4"), ["--bits", "export folder"]),
    ("demo", ("--calibration", "calibration", "--parts", "unet"), ["--parts", "--calibration"]),
    ("demo", ("--bits", "fp", "--parts", "unet"), ["--parts", "--bits fp"]),
    ("demo", ("--passionsr", "a.pth", "--parts", "unet"), ["--parts", "--passionsr"]),
    ("onnx", ("--workspace", "5"), ["--workspace", "--target cpu"]),
    ("onnx", ("--target", "tensorrt-rtx", "--precision", "bf16"), ["--precision", "--target tensorrt-rtx"]),
    ("onnx", ("--target", "tpu"), ["tpu", "tensorrt-rtx"]),
)


def test_options_that_would_change_nothing(intsr: Run, bench_top: Path) -> None:
    for source, arguments, words in OPTIONS_WITHOUT_EFFECT:
        given = [bench_top / value if (bench_top / value).exists() else value for value in (source, *arguments)]
        assert_one_line(intsr("compile", *given, "-o", bench_top / "new" / "x.engine"), 2, *words)
        assert not (bench_top / "new").exists()


def test_a_verification_that_fails_says_so_however_quiet(intsr: Run, bench_top: Path, tiny_folder: Path) -> None:
    given = ("--against", tiny_folder, "--images", bench_top / "pictures", "--limit", 1)
    result = intsr("verify", bench_top / "tiny.engine", *given, "--min-psnr", 150, "-q", "--json")
    assert_one_line(result, 1, "tiny.engine", "at least 150")
    assert json.loads(result[1])["passed"] is False


@pytest.mark.parametrize("command", ["upscale", "calibrate", "compile", "export"])
def test_an_unwritable_output_folder(intsr: Run, bench_top: Path, tiny_folder: Path, command: str) -> None:
    (bench_top / "file").write_text("in the way")
    out, pictures = bench_top / "file" / "deeper", bench_top / "pictures"
    arguments: dict[str, tuple[object, ...]] = {
        "upscale": (bench_top / "tiny.engine", pictures),
        "calibrate": (tiny_folder, "--images", pictures),
        "compile": (bench_top / "onnx",),
        "export": (tiny_folder, "--tile", TILE_PX),
    }
    result = intsr(command, *arguments[command], "-o", out)
    assert_one_line(result, 2, "cannot write")
    assert (bench_top / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("command", "number", "code"), [("compile", signal.SIGINT, 130), ("upscale", signal.SIGTERM, 143)]
)
def test_interrupted_in_the_middle(bench_top: Path, command: str, number: signal.Signals, code: int) -> None:
    out = bench_top / "out"
    out.mkdir()
    if command == "compile":
        arguments = [bench_top / "onnx", "-o", out / "x.engine"]
    else:
        pixels = np.random.default_rng(1).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(bench_top / "large.png")
        arguments = [bench_top / "tiny.engine", bench_top / "large.png", "-o", out / "large.png"]
    line = [sys.executable, "-m", "intsr", command, *map(str, arguments)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any(out.iterdir()):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.05)
    # The folder is there before the program knows its name.
    time.sleep(0.5)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert not list(out.iterdir())
