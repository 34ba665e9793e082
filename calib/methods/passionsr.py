"""PassionSR: LBQ and LET by distributed quantization calibration. docs/theory.md, "DQC".

On blocks LET is trained first, with ranges re-initialized at every step; then ranges are re-initialized once, and
trained. The paper's second stage trains ranges alone for whole networks too; that fell 0.3 dB behind lbq+let at W6A6.
"""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import LET, RANGES, Method, Stage

METHOD = Method(
    "passionsr",
    let="channel",
    start=RangeInit("output", let=True),
    block=(Stage("let", (LET,), dynamic=True, share=0.5), Stage("ranges", RANGES, restart=True, share=0.5)),
    joint=(Stage("all", (*RANGES, LET)),),
)
