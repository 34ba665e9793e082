"""`intsr report`: one file that holds everything, says what --json says, and shows only what it was given."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_pages as pages
from PIL import Image
from report_pages import CURVES, Made, invoke

from intsr.calib.calibration.files import load_calibration, save_calibration
from intsr.calib.calibration.types import Clipped
from intsr.calib.data.made_pictures import smooth_tiles
from intsr.errors import IntsrError
from intsr.runtime.engine import open_engine
from intsr.runtime.measure.metrics import psnr_db, score_pair
from intsr.runtime.measure.seams import seam_score
from intsr.runtime.tiles.grid import plan_tiles

pytest.importorskip("matplotlib", reason="the report extra is not installed")
pytest.importorskip("jinja2", reason="the report extra is not installed")


def section_ids(page: Any) -> list[str]:
    return [section.attributes["id"] for section in page.root.find_all("section")]


def test_the_file_holds_everything(made: Made) -> None:
    addresses = [
        value
        for element in made.page.root.everything()
        for key, value in element.attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    ]
    assert len(addresses) > 30
    assert {re.split("[:#]", address)[0] for address in addresses} == {"data", ""}
    assert set(re.findall(r"https?://[^\s\"'<]*", made.text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", made.text)
    assert len(made.text.encode()) == made.facts["size_bytes"] < 5e6


def test_names_are_unique(made: Made) -> None:
    ids = [e.attributes["id"] for e in made.page.root.everything() if "id" in e.attributes]
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', made.text)) <= set(ids)


def test_drawings_take_the_pages_colours(made: Made) -> None:
    drawings = [svg for svg in made.page.root.find_all("svg") if svg.attributes.get("id", "").startswith("plot-")]
    names = {"colour-bar", "stages", "quality", "integer-share", "sqnr", "histograms", "outliers", "channels"}
    names |= {"ranges", "joint-curves", "block-curves"}
    assert {svg.attributes["id"] for svg in drawings} == {f"plot-{name}" for name in names}
    assert "#0100" not in made.text
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in drawings)
    used = set(re.findall(r"var\((--[\w-]+)\)", made.text))
    light, dark = made.text.split("prefers-color-scheme: dark")[:2]
    assert used - {"--at", "--gap"} <= set(re.findall(r"(--[\w-]+):", light)) & set(re.findall(r"(--[\w-]+):", dark))


def test_hostile_names_stay_text(made: Made) -> None:
    assert len(made.page.root.find_all("script")) == 1 and not made.page.root.find_all("b")
    assert not [e for e in made.page.root.everything() if any(key.startswith("on") for key in e.attributes)]
    text = made.page.root.find_all("main")[0].text
    assert " ".join(pages.HOSTILE.split()) in text and pages.HOSTILE_ENGINE in text


def test_scores_are_those_of_json(made: Made) -> None:
    keys = ("psnr_to_reference_db", "max_error_levels", "psnr_y_db", "ssim_y", "tiles", "seam_score", "ms")
    rows = made.page.rows("Scores of every picture")
    assert len(rows) == len(made.facts["pictures"]["scores"]) == 6
    for row, score in zip(rows, made.facts["pictures"]["scores"], strict=True):
        assert [pages.value_of(cell) for cell in row[3:]] == [score[key] for key in keys]
        assert row[0].text.startswith(score["picture"])
    shown = made.page.root.find_all("span", class_="value")
    numbers = made.facts["head"]["key_numbers"]
    assert [(s.attributes["data-key"], pages.value_of(s), s.text) for s in shown] == [
        (number["key"], number["value"], number["text"]) for number in numbers
    ]
    assert {"psnr_to_reference_db", "psnr_y_db", "size_bytes", "seam_score", "worst_sqnr_db"} <= {
        number["key"] for number in numbers
    }


def test_scores_are_right(made: Made, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(made.folder / "lr" / pages.HOSTILE))
    pictures = {}
    for name in ("fp", pages.HOSTILE_ENGINE):
        with open_engine(made.folder / f"{name}.engine") as engine:
            pictures[name] = np.asarray(engine.upscale(pixels))
    scores = {(s["picture"], s["variant"]): s for s in made.facts["pictures"]["scores"]}
    score = scores[pages.HOSTILE, pages.HOSTILE_ENGINE]
    got, expected = (pictures[name].astype(float) for name in (pages.HOSTILE_ENGINE, "fp"))
    assert score["psnr_to_reference_db"] == pytest.approx(psnr_db(got, expected))
    assert score["max_error_levels"] == np.abs(got - expected).max()
    tiles = plan_tiles(37, 40, 16, 4)
    assert score["tiles"] == len(tiles.tiles) == 9
    assert score["seam_score"] == pytest.approx(seam_score(pictures[pages.HOSTILE_ENGINE], tiles, 2))
    Image.fromarray(pictures[pages.HOSTILE_ENGINE]).save(tmp_path / "made.png")
    evaluated = score_pair(tmp_path / "made.png", made.folder / "hr" / pages.HOSTILE)
    assert (score["psnr_y_db"], score["ssim_y"]) == pytest.approx((evaluated.psnr_y_db, evaluated.ssim_y))
    one = [s for (picture, _), s in scores.items() if picture == "one.png"]
    assert {s["seam_score"] for s in one} == {None} and all(s["calibrated_on"] for s in one)


def test_layers_are_those_of_json(made: Made) -> None:
    layers = [layer for layer in made.facts["calibration"]["layers"] if layer["runs"] == "integer"]
    rows = made.page.rows("Integer layers in graph order")
    assert len(rows) == len(layers) > 30
    for row, layer in zip(rows, layers, strict=True):
        assert row[1].text == layer["site"]
        numbers = [pages.value_of(cell) for cell in (*row[3:5], *row[6:11])]
        clipped = layer["clipped_low"] + layer["clipped_high"]
        rest = [layer[key] for key in ("input_sqnr_db", "output_sqnr_db", "outlier_ratio", "outlier_ratio_let")]
        assert numbers == [layer["x_min"], layer["x_max"], clipped, *rest]
    worst = made.facts["calibration"]["worst_layers"]
    by_sqnr = sorted(layers, key=lambda layer: layer["output_sqnr_db"])
    assert worst == [layer["site"] for layer in by_sqnr[:20]]


def test_every_layer_that_is_not_integer_has_a_reason(made: Made) -> None:
    for layer in made.facts["calibration"]["layers"]:
        assert bool(layer["reason"]) == (layer["runs"] != "integer"), layer["site"]
    reasons = {row["name"]: row["reason"] for row in made.facts["engines"]["networks"][0]["float_layers"]}
    assert "the latents" in reasons["unet.conv_in"]
    assert reasons["unet.mid_block.resnets.0.conv1"] == "The builder chose so."
    assert "reads or writes the picture" in made.text and "make it a constant" in made.text


def test_measurements_find_their_engine(made: Made) -> None:
    rows = {row["name"]: row for row in made.facts["engines"]["rows"]}
    assert list(rows) == [f"{pages.HOSTILE_ENGINE}.engine", "fp.engine", "demo"]
    assert (rows["fp.engine"]["median_ms"], rows["fp.engine"]["timing"]) == (64.0, "bench")
    assert rows[f"{pages.HOSTILE_ENGINE}.engine"]["timing"] == "report"
    assert (rows["demo"]["target"], rows["demo"]["size_bytes"]) == ("torch", None)
    cells = made.page.rows("Engines: what they are and what they cost")
    assert [pages.value_of(row[3]) for row in cells] == [row["median_ms"] for row in rows.values()]


def test_warnings_come_first(made: Made) -> None:
    notices = [notice.text for notice in made.page.root.find_all("p", class_="notice")]
    assert notices == [
        "tiny: random weights: for measuring speed and memory only",
        "No engine here was made from this calibration: their digests differ.",
        "int8 loses",
    ]


def test_the_phases_of_training(made: Made) -> None:
    phases = {phase["name"]: phase for phase in made.facts["calibration"]["phases"]}
    block, joint = (phases[name] for name in CURVES)
    assert (block["kind"], block["joint"], block["gain"]) == ("let", False, 0.75)
    assert (joint["network"], joint["joint"], joint["gain"], joint["steps"]) == ("unet", True, 0.8, 10)


@pytest.mark.parametrize(
    ("arguments", "sections"),
    [
        (["calibration"], ["calibration"]),
        (["fp.engine"], ["engines"]),
        (["--bench", "bench.json"], ["engines"]),
        (["fp.engine", "--images", "lr/one.png"], ["pictures", "engines"]),
        (["--outputs", "a=hr", "--outputs", "b=hr"], ["pictures"]),
        (["calibration", "--images", "lr"], ["calibration"]),
    ],
)
def test_sections_are_there_with_their_data(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sections: list[str]
) -> None:
    monkeypatch.chdir(sources)
    result = invoke(*arguments, "-o", tmp_path / "r.html", "--json", "-q")
    assert result.exit_code == 0, result.output
    page = pages.Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert section_ids(page) == sections
    assert [name for name in ("pictures", "engines", "calibration") if name in json.loads(result.stdout)] == sections
    assert bool(page.root.find_all("input", type="range")) == ("pictures" in sections)


def test_finished_pictures_are_compared(sources: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pixels = np.asarray(Image.open(sources / "hr" / "one.png")).astype(int)
    Image.fromarray((pixels + 8 * (pixels < 200)).astype(np.uint8)).save(other / "one.png")
    arguments = ("--outputs", f"fp={sources / 'hr'}", "--outputs", f"int={other}", "--reference", "fp")
    result = invoke(*arguments, "--images", sources / "lr" / "one.png", "-o", tmp_path / "r.html", "--json", "-q")
    assert result.exit_code == 0, result.output
    pictures = json.loads(result.stdout)["pictures"]
    assert (pictures["reference"], pictures["primary"]) == ("fp", "int")
    assert [variant["name"] for variant in pictures["variants"]] == ["lr", "fp", "int"]
    score = next(score for score in pictures["scores"] if score["variant"] == "int")
    assert score["max_error_levels"] == 8 and score["psnr_to_reference_db"] > 30


def test_a_bad_picture_is_left_out_and_said(sources: Path, tmp_path: Path) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    (lr / "good.png").write_bytes((sources / "lr" / "one.png").read_bytes())
    (lr / "bad<i>.png").write_bytes(b"no picture")
    result = invoke(sources / "fp.engine", "--images", lr, "-o", tmp_path / "r.html", "--json")
    assert result.exit_code == 1
    assert "left out" in result.stderr
    facts = json.loads(result.stdout)
    assert [item["name"] for item in facts["pictures"]["skipped"]] == ["bad<i>.png"]
    assert {score["picture"] for score in facts["pictures"]["scores"]} == {"good.png"}
    page = pages.Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "not a picture" in page.root.find_all("div", class_="notice")[0].text


ERRORS = [
    ([], "nothing to report on"),
    (["lr"], "a folder without calibration.json"),
    (["lr/one.png"], "a picture; expected an .engine file"),
    (["missing.engine"], "no such file"),
    (["calibration", "calibration/"], "a second calibration"),
    (["--bench", "lr/one.png"], "is not valid"),
    (["--bench", "wrong.json"], "no list of measured engines"),
    (["fp.engine", "--hr", "hr"], "no pictures to compare the originals with"),
    (["--images", "lr"], "nothing to report on"),
    (["fp.engine", "--model", "demo"], "no calibration is given"),
    (["calibration", "--model", "demo"], "layers are measured on pictures"),
    (["calibration", "--context", "a"], "--context: no model that it belongs to; expected --model MODEL too"),
    (["calibration", "--lora", "a"], "--lora: no model that it belongs to"),
    (["fp.engine", "--images", "nothing"], "no such folder"),
    (["--outputs", "hr"], "expected NAME=DIR"),
    (["--outputs", "a=hr", "--outputs", "a=lr"], "a twice"),
    (["--outputs", "a=nothing"], "no folder nothing"),
    (["--outputs", "lr=hr"], "the name of two kinds of pictures"),
    (["--outputs", "a=hr", "--reference", "b"], "expected one of a"),
    (["fp.engine", "fp.engine", "copy/fp.engine"], "the name of two engines"),
    (["fp.engine", "copy/x4.engine", "--images", "lr"], "engines of factors 2, 4"),
    (["fp.engine", "--images", "lr", "--overlap", "16"], "16 pixels"),
    (["fp.engine", "-o", "lr"], "is a folder"),
]


@pytest.fixture(scope="module")
def broken(sources: Path) -> Iterator[Path]:
    (sources / "wrong.json").write_text('{"engines": [{"path": "a", "median_ms": 1, "stages_ms": {"unet": "x"}}]}')
    (sources / "copy").mkdir()
    (sources / "copy" / "fp.engine").write_bytes((sources / "fp.engine").read_bytes())
    pages.write_engine(sources / "copy" / "x4.engine", upscale_factor=4)
    yield sources


def test_mistakes_are_one_line(
    broken: Path, monkeypatch: pytest.MonkeyPatch, intsr: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(broken)
    for arguments, message in ERRORS:
        code, stdout, stderr = intsr("report", "-q", "-o", "mistake.html", *arguments)
        assert (code, stdout) == (2, ""), stderr
        assert stderr.startswith("intsr: error: ") and message in stderr and stderr.count("\n") == 1, stderr
        assert not Path("mistake.html").exists()


def test_a_missing_library_is_named_with_its_extra(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = invoke(sources / "fp.engine", "-o", sources / "no.html")
    assert isinstance(result.exception, IntsrError)
    assert str(result.exception) == (
        'intsr report: jinja2 is not installed; install it with: pip install "intsr[report]"'
    )


def test_engines_are_reported_on_without_the_compiler(sources: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "onnx", "safetensors", "skimage", "scipy")))
from intsr.cli.main import main
main()
"""
    arguments = ["report", sources / "fp.engine", "--images", sources / "lr", "-o", tmp_path / "r.html", "-q"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "r.html").is_file()


def test_smooth_tiles_of_every_engine_are_compared_with_full_precision(made: Made) -> None:
    (row,) = made.facts["pictures"]["smooth_tiles"]
    assert row["variant"] == pages.HOSTILE_ENGINE
    assert [tile["name"] for tile in row["tiles"]] == list(smooth_tiles(8))
    shown = made.page.rows("Smooth and flat tiles")
    for cells, tile in zip(shown, row["tiles"], strict=True):
        assert cells[0].text == tile["name"]
        assert [pages.value_of(cell) for cell in cells[1:]] == [tile["psnr_db"], tile["max_levels"]]
    # That engine is wrong by 3 % of the range and more.
    assert 0 < min(tile["psnr_db"] for tile in row["tiles"]) < 40


def test_clipped_shares_are_columns_where_a_calibration_has_them(sources: Path, tmp_path: Path) -> None:
    calibration = load_calibration(sources / "calibration")
    clipped = {site: Clipped(0.001, 0.1) for site in calibration.sites}
    save_calibration(replace(calibration, clipped=clipped), tmp_path / "clipped")
    assert invoke(tmp_path / "clipped", "-o", tmp_path / "r.html", "-q").exit_code == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Outside, smooth" in text and "10.00 %" in text
    assert invoke(sources / "calibration", "-o", tmp_path / "s.html", "-q").exit_code == 0
    assert "Outside, smooth" not in (tmp_path / "s.html").read_text(encoding="utf-8")
