"""Methods as data: what each one learns, in which order, from which start.

A plan has two levels. `block` stages train one unit after another against its full-precision output; `joint` stages
then train a whole network against its own: latents for the encoder, x0 for the UNet, pictures for the decoder.
Sources: METHODS sections 2 (lbq, LET, DQC) and 6 (the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from intsr.calib.learn.initialize import Start

RANGES = ("input_range", "weight_range")
# Rates of Adam. Ranges: in units of their width. let: logarithm of s, and d in units of the channel's reach.
# rounding: AdaRound's logits. low_rank: entries of B and A.
RATES = MappingProxyType({"input_range": 2e-3, "weight_range": 2e-3, "let": 5e-3, "rounding": 5e-2, "low_rank": 5e-4})


@dataclass(frozen=True, slots=True)
class Stage:
    """trains: keys of RATES. dynamic: ranges follow what is seen at every step. restart: ranges are searched anew
    before. share: of the steps given to one unit, or network. rates: where they differ from RATES."""

    name: str
    trains: tuple[str, ...]
    dynamic: bool = False
    restart: bool = False
    share: float = 1.0
    rates: Mapping[str, float] = field(default_factory=lambda: RATES)


@dataclass(frozen=True, slots=True)
class Plan:
    """let: s and d for each `channel`, for each `part` of a concatenation, or `none`. symmetric: grids around 0."""

    let: str
    start: Start
    block: tuple[Stage, ...] = ()
    joint: tuple[Stage, ...] = ()
    symmetric: bool = False


SEARCH = Start("output")
SEARCH_LET = Start("output", let=True)

# Shares: with a tenth as many block steps as joint steps, the default, every method trains for about as long.
PLANS: dict[str, Plan] = {
    "lbq": Plan("part", SEARCH, (Stage("ranges", RANGES),), (Stage("ranges", RANGES),)),
    "lbq+let": Plan("channel", SEARCH_LET, (Stage("all", (*RANGES, "let")),), (Stage("all", (*RANGES, "let")),)),
    # DQC on blocks: LET first, ranges re-initialized at every step; then ranges re-initialized once, and trained.
    # The paper's second stage trains ranges alone for whole networks too; that fell 0.3 dB behind lbq+let at W6A6.
    "passionsr": Plan(
        "channel",
        SEARCH_LET,
        (Stage("let", ("let",), dynamic=True, share=0.5), Stage("ranges", RANGES, restart=True, share=0.5)),
        (Stage("all", (*RANGES, "let")),),
    ),
    "lsq": Plan("none", Start("lsq"), (), (Stage("steps", RANGES, share=1.1),), symmetric=True),
    # Block reconstruction with learned rounding, then the steps of activations.
    "qdiffusion": Plan(
        "part",
        Start("values", 2.4),
        (Stage("rounding", ("rounding",), share=8.8), Stage("input steps", ("input_range",), share=2.2)),
    ),
    # Low-rank changes merged into the weights before these are quantized; the published rates are absolute and small,
    # for many more steps: here those of RATES.
    "efficientdm": Plan("part", SEARCH, (), (Stage("low rank", (*RANGES, "low_rank"), share=1.1),)),
}


def plan_of_method(method: str, symmetric: bool) -> Plan:
    """The method's plan, on symmetric grids where that is asked for."""
    plan = PLANS[method]
    return replace(plan, symmetric=True) if symmetric else plan
