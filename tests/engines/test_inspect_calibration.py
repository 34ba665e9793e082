"""`intsr inspect` of a calibration folder, against what folding the same calibration really does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from folding import fold

from intsr.calib.calibration.files import save_calibration
from intsr.calib.calibration.types import Calibration
from intsr.calib.learn.quantized_layer import quantized_layers
from intsr.calib.models.families.sd21 import is_constant
from intsr.calib.models.open import SRModel
from intsr.calib.models.phases import in_phases
from intsr.engines.commands.inspect import inspect
from intsr.engines.inspect.calibration import inspect_calibration, runs_of_sites
from intsr.errors import CalibrationError
from intsr.types import Bits

FREE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
EXPLICIT = "unet.mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def learned(tiny_model: SRModel, tiny_calibration: Calibration) -> Calibration:
    """As a method that trains leaves it: LET and weight ranges for integer layers, MaxMin's ranges for the others."""
    layers = quantized_layers(
        in_phases(tiny_model, tiny_calibration.phases), Bits(6, 6), ("unet", "vae"), let="channel"
    )
    rng = np.random.default_rng(0)
    for layer in {id(layer.grid): layer for layer in layers.values()}.values():
        grid = layer.grid
        s = rng.uniform(0.5, 2, grid.spec.channels)
        d = rng.normal(size=grid.spec.channels) * grid.spec.may_shift
        grid.set_let(*(grid.base_scale.new_tensor(values) for values in (s, d, np.ones_like(d))))
    sites = dict(tiny_calibration.sites) | {site: layer.site_quantizer() for site, layer in layers.items()}
    return replace(tiny_calibration, method="passionsr", bits=Bits(6, 6), sites=sites, seconds=12.25)


@pytest.fixture
def folder(learned: Calibration, tmp_path: Path) -> Path:
    save_calibration(learned, tmp_path / "c")
    return tmp_path / "c"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(inspect, [str(argument) for argument in arguments], catch_exceptions=False)


def test_json_says_what_folding_does(folder: Path, learned: Calibration, tiny_model: SRModel) -> None:
    answer = json.loads(run(folder, "--json").stdout)
    assert answer == inspect_calibration(folder)
    facts, sites = answer["calibration"], {site["site"]: site for site in answer["sites"]}
    assert list(sites) == list(learned.sites)
    folded = fold(tiny_model, learned)
    layers = {site: layer for network in folded.values() for site, layer in network.layers.items()}
    assert {site for site, value in sites.items() if value["runs"] == "integer"} == set(layers)
    assert {site for site, value in sites.items() if value["runs"] == "constant"} == set(filter(is_constant, sites))
    explicit = {site for site, layer in layers.items() if layer.let_scale is not None}
    for site, value in sites.items():
        expected = None if site not in layers else "explicit" if site in explicit else "free"
        assert (value["let"] and value["let"]["placement"]) == expected, site
    assert facts["layers"]["integer"] == len(layers)
    counts = {"sites": len(layers), "free": len(layers) - len(explicit), "explicit": len(explicit)}
    shifted = sum(bool(np.any(learned.sites[site].let_shift)) for site in layers)
    assert facts["let"] == counts | {"shifted": shifted} and min(counts.values()) > 10
    assert facts["weights"] == {"ranges": len(layers), "codes": 0}
    assert (facts["method"], facts["bits"], facts["pictures"], facts["seconds"]) == ("passionsr", "w6a6", 2, 12.25)
    assert facts["digest"] == learned.digest()


def test_what_a_person_reads(folder: Path, learned: Calibration) -> None:
    facts = inspect_calibration(folder)["calibration"]
    shown = dict(line.split(maxsplit=1) for line in run(folder).stdout.splitlines())
    assert shown["method"] == "passionsr" and shown["parts"] == "unet, vae" and shown["seconds"] == "12.2"
    kinds, let = (
        facts["layers"],
        "{sites} sites: {free} free, {explicit} with an explicit step, {shifted} with a shift",
    )
    counts = f"{kinds['integer']} integer, {kinds['float']} float, {kinds['constant']} constant"
    assert shown["sites"] == f"{len(learned.sites)}: {counts}"
    assert shown["LET"] == let.format_map(facts["let"])
    assert shown["learned"] == f"weights    {kinds['integer']} ranges, 0 codes"


def test_one_line_a_layer(folder: Path, learned: Calibration) -> None:
    before, after = run(folder).stdout, run(folder, "--layers").stdout
    assert after.startswith(before)
    lines = {line.split()[0]: line.split() for line in after[len(before) :].splitlines()}
    assert list(lines) == list(learned.sites)
    scale = learned.sites[FREE].let_scale
    assert scale is not None
    low, high = scale.min(), scale.max()
    assert lines[FREE][1:] == (
        f"integer w6a6 [-1, 1] s {low:.3g} to {high:.3g} (x{high / low:.3g}) free shift weight ranges".split()
    )
    assert " ".join(lines[EXPLICIT][-5:]) == "explicit no shift weight ranges"
    assert lines["unet.time_embedding.linear_1"][1:3] == ["constant", "w8a8"]
    assert lines["vae.quant_conv"][1:3] == ["float", "w8a8"] and "s" not in lines["vae.quant_conv"]


def test_codes_are_told_from_ranges(learned: Calibration, tmp_path: Path) -> None:
    codes = {"weight_codes": np.zeros((48, 48, 3, 3), np.int8), "weight_scale": np.ones(48, np.float32)}
    quantizer = replace(learned.sites[EXPLICIT], weight_low=None, weight_high=None, **codes)
    save_calibration(replace(learned, sites=dict(learned.sites) | {EXPLICIT: quantizer}), tmp_path / "c")
    answer = inspect_calibration(tmp_path / "c")
    assert answer["calibration"]["weights"]["codes"] == 1
    assert next(site for site in answer["sites"] if site["site"] == EXPLICIT)["weights"] == "codes"


def test_the_name_says_what_runs_how(tiny_calibration: Calibration, tmp_path: Path) -> None:
    save_calibration(tiny_calibration, tmp_path / "c")
    runs = runs_of_sites(tiny_calibration.sites)
    assert {site for site, kind in runs.items() if kind == "float"} == {
        *("unet.conv_in", "unet.conv_out", "vae.encoder.conv_in", "vae.encoder.conv_out", "vae.decoder.conv_in"),
        *("vae.decoder.conv_out", "vae.quant_conv", "vae.post_quant_conv"),
    }
    assert "0 sites: 0 free, 0 with an explicit step" in run(tmp_path / "c").stdout


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CalibrationError, match="make one with"):
        inspect_calibration(tmp_path)
