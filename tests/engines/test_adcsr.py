"""AdcSR's engines, and the commands of its page as they stand there, on a small model."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adcsr import SMALL
from adcsr_forward import published_picture
from builds import built_in_this_process
from PIL import Image

from intsr.bundle import read_manifest
from intsr.calib.models.families import adcsr
from intsr.runtime.engine import open_engine
from intsr.types import SYNTHETIC_NOTE

Command = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).parents[2] / "docs/compile/models/adcsr.md"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from skimage import data

    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).resize((32, 24), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def run(intsr: Command, *arguments: object) -> str:
    code, out, err = intsr(*arguments)
    assert code == 0, err
    return out + err


def test_a_picture_is_the_published_rule_s(intsr: Command, adcsr_folder: Path, photos: Path, tmp_path: Path) -> None:
    """Full precision in ONNX Runtime: a picture that is one tile, against the published rule and colour fix."""
    import torch

    engine, photo = tmp_path / "fp.engine", photos / "astronaut.png"
    Image.open(photo).crop((0, 0, 24, 24)).save(photo)
    with built_in_this_process():
        run(intsr, "compile", adcsr_folder, "--bits", "fp", "--target", "onnxruntime", "--tile", 24, "-o", engine)
    manifest = read_manifest(engine)
    assert (manifest.color_fix, manifest.resize_filter, manifest.network_names) == (
        "adain",
        "box",
        ("unet", "decoder"),
    )
    assert manifest.networks[0].input.shape == (1, 3, 24, 24) and manifest.synthetic
    facts = {"family": "adcsr", "enlarged first": "no", "colour fix": "adain", "overlap": "8 px"}
    assert manifest.run_facts() == facts | {"licence": SYNTHETIC_NOTE}
    out = run(intsr, "inspect", engine)
    assert all(re.search(f"^{name} +{value}$", out, re.MULTILINE) for name, value in facts.items())
    pixels = np.asarray(Image.open(photo))
    with open_engine(engine) as opened:
        got = np.asarray(opened.upscale(pixels))
    lr = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    sr = published_picture(adcsr_folder, lr)
    means, deviations = ([picture.mean((2, 3), True), picture.std((2, 3), keepdim=True)] for picture in (lr, sr))
    (lr_mean, lr_std), (sr_mean, sr_std) = means, deviations
    expected = (((sr - sr_mean) / sr_std * lr_std + lr_mean) / 2 + 0.5).clamp(0, 1) * 255
    # The colour fix adds a little to each variance, and counts each pixel sixteen times.
    assert np.abs(got - expected[0].permute(1, 2, 0).numpy()).max() < 1.0


def test_integer_engines_agree_with_torch(intsr: Command, adcsr_folder: Path, photos: Path, tmp_path: Path) -> None:
    calibration, engine = tmp_path / "w8a8", tmp_path / "w8a8.engine"
    run(
        intsr,
        "calibrate",
        adcsr_folder,
        "--images",
        photos,
        "--method",
        "maxmin+let",
        "--tile",
        16,
        "-o",
        calibration,
    )
    options = ("--target", "onnxruntime", "--tile", 16, "--verify", photos)
    with built_in_this_process():
        run(intsr, "compile", adcsr_folder, "--calibration", calibration, *options, "-o", engine)
    for size in ((1, 1), (5, 3), (45, 61)):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)).save(
            tmp_path / "x.png"
        )
        run(intsr, "upscale", engine, tmp_path / "x.png", "-o", tmp_path / "y.png", "--overwrite")
        assert Image.open(tmp_path / "y.png").size == (4 * size[1], 4 * size[0])
    code, _, err = intsr("upscale", engine, tmp_path / "x.png", "-o", tmp_path / "z.png", "--overlap", 16)
    assert code == 2 and "0 to 15" in err


def commands_of_page() -> list[list[str]]:
    """What is written after `    intsr `."""
    text = PAGE.read_text(encoding="utf-8")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    intsr (.*)$", text, re.MULTILINE)]


@pytest.mark.slow
def test_the_page(intsr: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last command first: it makes the files. Tiles are small, and the full-size family is the small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adcsr, "ADCSR", SMALL)
    shutil.copy(photos / "coffee.png", "photo.png")
    *others, synth = commands_of_page()
    assert synth == ["synth", "--family", "adcsr", "-o", "adcsr"] and len(others) == 8
    for command in (synth, *others):
        small = ["--tile", "16"] if command[0] in ("calibrate", "compile") else []
        run(intsr, *command, *small)
    assert Image.open("photo-x4.png").size == (128, 96)
    assert "Apache-2.0" not in run(intsr, "inspect", "adcsr.engine")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "w8a8" in page and "unet.features" in page
