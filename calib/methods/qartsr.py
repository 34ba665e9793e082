"""QArtSR: a branch, LET, boundaries and a low-rank change of the weights, trained in reverse and then end to end.

    y = L1 (L2 / phi) (phi x) + Q(phi x) . Q((W - L1 L2) / phi + F1 F2) + b

phi is 1 / s of LET; F1 F2 vanishes in the integer weights. The paper publishes no ranks, rates or steps: those here
are our own (docs/measure/low_bits.md). docs/theory.md, "QArtSR".
"""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import BRANCH, LET, RANGES, Method, Stage
from intsr.calib.methods.efficientdm import LOW_RANK

TRAINED = (*RANGES, LET, BRANCH, LOW_RANK)
METHOD = Method(
    "qartsr",
    let="channel",
    start=RangeInit("output", let=True),
    block=(Stage("reverse", TRAINED),),
    whole=(Stage("extended", TRAINED),),
    rank=16,
    reverse=True,
)
