"""Bits by layer: rules, files, and what a budget chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from intsr.calib.mixed_bits import bits_from_text, bits_in_budget, block_errors, check_rules
from intsr.calib.models.families.sd21 import bits_of_site
from intsr.calib.models.open import SRModel
from intsr.calib.models.sites import integer_sites
from intsr.errors import UsageError
from intsr.types import Bits

ERRORS = {
    ("a", "b"): {8: 0.0, 6: 1.0, 5: 2.0, 4: 4.0, 3: 9.0, 2: 30.0},
    ("c",): {8: 0, 6: 0.1, 5: 0.2, 4: 0.3, 3: 0.5, 2: 4.0},
}
SIZES = {"a": 100, "b": 100, "c": 200}


def mean_bits(bits: Bits) -> float:
    return sum(SIZES[site] * bits_of_site(site, bits)[0] for site in SIZES) / sum(SIZES.values())


@pytest.mark.parametrize("budget", [8, 6.5, 5.5, 4, 2])
def test_the_budget_holds_and_the_least_sensitive_block_gives_most(budget: float) -> None:
    bits = bits_in_budget(ERRORS, SIZES, budget)
    assert mean_bits(bits) <= budget
    assert bits_of_site("c", bits)[0] <= bits_of_site("a", bits)[0] == bits_of_site("b", bits)[0]
    assert str(bits).endswith("-mixed")


def test_a_step_for_more_bits_at_once_is_seen() -> None:
    """c may fall to 3 for less than a to 6."""
    assert [bits_of_site(site, bits_in_budget(ERRORS, SIZES, 5.5))[0] for site in SIZES] == [8, 8, 3]


@pytest.mark.parametrize("budget", [1.5, 9])
def test_a_budget_that_cannot_be(budget: float) -> None:
    with pytest.raises(UsageError, match="--budget"):
        bits_in_budget(ERRORS, SIZES, budget)


def test_the_first_rule_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"default": "w4a4", "rules": {"vae.decoder.conv*": "w8a8", "vae.*": "w6a5"}}))
    for text in (str(path), "w4a4 vae.decoder.conv*=w8a8 vae.*=w6a5"):
        bits = bits_from_text(text)
        got = [bits_of_site(site, bits) for site in ("vae.decoder.conv_in", "vae.quant_conv", "unet.conv_in")]
        assert got == [(8, 8), (6, 5), (4, 4)]
        check_rules(bits, ["vae.decoder.conv_in", "vae.quant_conv", "unet.conv_in"])
    assert Bits.parse(str(bits)) == Bits(4, 4, mixed=True)


@pytest.mark.parametrize("text", ["w4a4 vae.*", "w4a4 vae.*=w9a9", "w4a4  vae.*=w8a8", "missing.json"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        bits_from_text(text)


def test_a_misspelt_layer_is_refused(tiny_model: SRModel) -> None:
    with pytest.raises(UsageError, match=r"unet.downblocks.*no layer"):
        check_rules(Bits.parse("w4a4 unet.downblocks.*=w8a8"), integer_sites(tiny_model, ("unet", "vae")))


def test_fewer_bits_are_larger_errors(tiny_model: SRModel) -> None:
    torch.manual_seed(0)
    crops = [torch.rand(1, 3, 64, 64) * 2 - 1]
    errors = block_errors(tiny_model, ("vae",), crops, [])
    assert {site for sites in errors for site in sites} <= set(integer_sites(tiny_model, ("vae",)))
    assert all(of_bits[8] < of_bits[4] < of_bits[2] for of_bits in errors.values())
