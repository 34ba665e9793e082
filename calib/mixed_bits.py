"""Bits by layer: read from a file, or chosen by what each block's rounding does to the picture.

    error(block, b) = |I_q - I|^2 with that block alone at b bits, one-pass ranges
    least sum of errors with sum(weights b) <= budget sum(weights)

All blocks begin at 8 bits; the step that adds least error for each bit of weights saved is taken, until the budget is
met. Errors of several blocks about add up where they are small, so that this says who can give most, not what the
picture loses: docs/measure/low_bits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from intsr.calib.calibration.types import SiteQuantizer
from intsr.calib.learn.blocks import blocks_by_name
from intsr.calib.learn.quantized_layer import with_layers
from intsr.calib.learn.stages import outputs
from intsr.calib.methods.maxmin_let import observe_let
from intsr.calib.models.families.sd21 import network_of_site
from intsr.calib.models.phases import in_phases
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites
from intsr.calib.observe.fake_quant import calibrated_layer
from intsr.errors import UsageError
from intsr.json_files import read_json
from intsr.types import MAX_BITS, MIN_BITS, Bits

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel

TRIED = (8, 6, 5, 4, 3, 2)
# Crops that the errors are those of.
BUDGET_CROPS = 4


@dataclass(frozen=True, slots=True)
class _File:
    # wXaY of every layer that no rule fits.
    default: str
    # Pattern of sites -> wXaY, the first that fits; "*" stands for anything.
    rules: dict[str, str]


def bits_from_text(text: str) -> Bits:
    """Read `--bits`: a JSON file with `default` and `rules`, or what `Bits.parse` takes. Raises UsageError."""
    if not text.endswith(".json"):
        return Bits.parse(text)
    found = read_json(Path(text), _File, error=UsageError)
    return Bits.parse(" ".join([found.default, *(f"{pattern}={bits}" for pattern, bits in found.rules.items())]))


def check_rules(bits: Bits, sites: Iterable[str]) -> None:
    """Raises UsageError for a rule that fits no layer: a misspelt name must not go unnoticed."""
    sites = list(sites)
    for pattern, *_ in bits.rules:
        if not any(fnmatchcase(site, pattern) for site in sites):
            raise UsageError("--bits", f"a rule for {pattern!r}, which no layer is called", "names as intsr inspect")


@torch.no_grad()
def block_errors(
    model: SRModel, parts: tuple[str, ...], crops: Sequence[torch.Tensor], guard: Sequence[torch.Tensor]
) -> dict[tuple[str, ...], dict[int, float]]:
    """Sites of a block -> bits -> mean square error of the pictures with that block alone at so many bits.

    crops, guard: enlarged, as `calibrate` looks at them; the errors are those on the crops.
    """
    model = in_phases(model)
    ranges = observe_let(model, crops, Bits(MAX_BITS, MAX_BITS), parts, guard)
    layers, references = integer_sites(model, parts), reference_networks(model)
    names = tuple(references)
    errors: dict[tuple[str, ...], dict[int, float]] = {}
    inputs: Sequence[torch.Tensor] = crops
    pictures = _pictures(references, names, inputs)
    for index, name in enumerate(names):
        own = [site for site in layers if network_of_site(site) == name]
        for sites in blocks_by_name(references[name], own).values():
            errors[sites] = {}
            for bits in TRIED:
                quantized = {site: calibrated_layer(layers[site], _at(ranges[site], bits)) for site in sites}
                networks = {**references, name: with_layers(references[name], quantized)}
                got = _pictures(networks, names[index:], inputs)
                squares = [float((y - exact).square().mean()) for y, exact in zip(got, pictures, strict=True)]
                errors[sites][bits] = sum(squares) / len(squares)
        inputs = outputs(references[name], inputs)
    return errors


def bits_in_budget(
    errors: Mapping[tuple[str, ...], Mapping[int, float]], sizes: Mapping[str, int], mean: float
) -> Bits:
    """The bits that add least error with at most `mean` bits a weight. errors: of `block_errors`. sizes: weights of
    each site. Raises UsageError for a mean that cannot be.
    """
    if not MIN_BITS <= mean <= MAX_BITS:
        raise UsageError("--budget", f"{mean:g}", f"{MIN_BITS} to {MAX_BITS} bits")
    weights = {sites: sum(sizes[site] for site in sites) for sites in errors}
    chosen = dict.fromkeys(errors, MAX_BITS)
    total = sum(weights.values())
    while sum(weights[sites] * bits for sites, bits in chosen.items()) > mean * total:
        steps = [
            ((of_bits[lower] - of_bits[chosen[sites]]) / (weights[sites] * (chosen[sites] - lower)), sites, lower)
            for sites, of_bits in errors.items()
            for lower in TRIED
            if lower < chosen[sites]
        ]
        _, sites, lower = min(steps)
        chosen[sites] = lower
    least = min(chosen.values())
    rules = tuple((site, bits, bits) for sites, bits in chosen.items() for site in sites if bits != least)
    return Bits(least, least, rules, mixed=True)


def _at(quantizer: SiteQuantizer, bits: int) -> SiteQuantizer:
    return replace(quantizer, weight_bits=bits, activation_bits=bits)


def _pictures(
    networks: Mapping[str, nn.Module], names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    for name in names:
        inputs = outputs(networks[name], inputs)
    return inputs
