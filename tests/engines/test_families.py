"""The pages of the model families, run as they stand there; and calibration, verification and report of each.

SD 2.1 is a small model of its structure here: the pages' own `intsr synth` commands make it, and the families' files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from builds import built_in_this_process
from PIL import Image

from intsr.bundle import read_manifest
from intsr.calib.models.families.architecture import ARCHITECTURES, Architecture
from intsr.calib.models.families.published import FAMILIES
from intsr.calib.models.synth import base_shapes
from intsr.engines.compile.request import checked_tiles
from intsr.targets import target_from_name
from intsr.types import FAMILY_NAMES, ModelSpec

PAGES = Path(__file__).parents[2] / "docs" / "compile" / "models"
Intsr = Callable[..., tuple[int, str, str]]


def commands_of(page: str) -> list[list[str]]:
    lines = re.findall(r"^    intsr (.+)$", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    unet, vae = families.small_networks()
    configs: list[dict[str, Any]] = [{**network.config} for network in (unet, vae)]
    small = Architecture("small", *configs, context_tokens=5)
    shapes = base_shapes(small)
    monkeypatch.setitem(ARCHITECTURES, "sd21", small)
    monkeypatch.setattr("intsr.calib.models.synth.base_shapes", lambda _: shapes)
    return small


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Architecture) -> Path:
    """A folder with photos/ and photo.png, and here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(2):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{i}.png")
    Image.fromarray(coarse).resize((30, 24), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path


def test_every_family_has_its_page() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(FAMILY_NAMES)
    for family in FAMILIES.values():
        text = (PAGES / f"{family.name}.md").read_text(encoding="utf-8")
        assert family.published in text and f"--family {family.name} " in text


@pytest.mark.parametrize(("family", "tiles"), [("hypir", (128, 64)), ("pisasr", (192, 64)), ("osediff", (128, 64))])
def test_the_familys_tiles_are_the_default(family: str, tiles: tuple[int, ...]) -> None:
    spec = ModelSpec("m", 1, 0.5, 0.18, 4, "bicubic", 64, defaults=FAMILIES[family].defaults)
    assert checked_tiles(None, target_from_name("cpu"), spec) == tiles
    assert checked_tiles((64,), target_from_name("cpu"), spec) == (64,)


@pytest.mark.parametrize("family", ["hypir", "omgsr"])
def test_a_dry_run_counts_the_familys_files(
    intsr: Intsr, place: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    # Of so small a model, building would take more than loading.
    monkeypatch.setattr("intsr.engines.compile.estimate.build_peak_bytes", lambda *_: 0)
    lora = FAMILIES[family].published
    for given in (("--arch", "sd21", "-o", "sd21"), ("--family", family, "-o", lora)):
        assert intsr("synth", *given)[0] == 0
    peaks = []
    for given in ((), ("--lora", lora)):
        code, out, err = intsr("compile", "sd21", *given, "--bits", "fp", "--tile", 32, "--dry-run", "--json")
        assert code == 0, err
        peaks.append(json.loads(out)["peak_bytes"])
    path = place / lora
    files = [path] if path.is_file() else [file for file in path.glob("*/*") if file.is_file()]
    assert peaks[1] - peaks[0] == sum(file.stat().st_size for file in files) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pages_commands(intsr: Intsr, place: Path, family: str) -> None:
    commands = commands_of(f"{family}.md")
    assert [command[0] for command in commands] == ["calibrate", "compile", "upscale", "synth", "synth"]
    # Of tiles of 512 pixels even so small a model takes minutes.
    tile = {"calibrate": ("--tile", 32), "compile": ("--tile", 32)}
    for command in (*commands[3:], *commands[:3]):
        code, _, err = intsr(*command, *tile.get(command[0], ()))
        assert code == 0, f"{command}\n{err}"
        if command[0] == "compile":
            assert f"family {family}" in err and FAMILIES[family].licence in err
    assert Image.open(place / "photo-x4.png").size == (120, 96)
    manifest, facts = read_manifest(place / commands[1][-1]), FAMILIES[family].defaults
    assert (manifest.family, manifest.color_fix, manifest.min_side_px) == (family, facts.color_fix, facts.min_side_px)
    assert manifest.overlap_px == max(32 // facts.overlap_divisor, 8) and manifest.synthetic
    code, out, _ = intsr("inspect", place / commands[1][-1])
    assert code == 0 and FAMILIES[family].licence in out and facts.color_fix in out


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["w8a8", "w6a6"])
@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_verified_and_reported(intsr: Intsr, place: Path, family: str, bits: str) -> None:
    lora = FAMILIES[family].published
    model, tile, pictures = ("sd21", "--lora", lora), ("--tile", 16), ("--images", "photos")
    # Random networks in a row make much of roundings that fall the other way: each by itself says more.
    bound, f32 = ("--min-psnr", 12), ("--precision", "f32")
    steps: list[tuple[object, ...]] = [
        ("synth", "--arch", "sd21", "-o", "sd21"),
        ("synth", "--family", family, "-o", lora),
        ("calibrate", *model, "--method", "maxmin", "--bits", bits, *pictures, *tile, "-o", "cal"),
        ("compile", *model, "--calibration", "cal", *tile, "-o", "x.engine", "--verify", "photos", *bound),
        ("verify", "x.engine", "--against", "cal", "--model", *model, *pictures, *bound, *f32, "--json"),
        ("report", "cal", "x.engine", "--model", *model, *pictures, "-o", "page.html", "--json"),
    ]
    with built_in_this_process():
        answers = [intsr(*step) for step in steps]
    assert [code for code, _, _ in answers] == [0] * len(steps), [err for _, _, err in answers]
    agreement = json.loads(answers[4][1])
    assert agreement["passed"] is True
    assert all(network["psnr_db"] > 30 for network in agreement["networks"]), agreement["networks"]
    # A LoRA that is forgotten is another model, and told.
    code, _, err = intsr("verify", "x.engine", "--against", "cal", "--model", "sd21", *pictures)
    assert code != 0 and "calibrate this model" in err, err
