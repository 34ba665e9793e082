"""LBQ: the ranges of inputs and weights, trained. docs/theory.md, "LBQ"."""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import RANGES, Method, Stage

STAGES = (Stage("ranges", RANGES),)
METHOD = Method("lbq", let="part", start=RangeInit("output"), block=STAGES, joint=STAGES)
