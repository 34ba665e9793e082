"""LBQ with LET: ranges, and s and d of every input channel, trained together. docs/theory.md, "LBQ" and "LET"."""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import LET, RANGES, Method, Stage

STAGES = (Stage("all", (*RANGES, LET)),)
METHOD = Method("lbq+let", let="channel", start=RangeInit("output", let=True), block=STAGES, joint=STAGES)
