"""LSQ: symmetric grids whose steps are trained on whole networks. docs/theory.md, "Other methods"."""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import RANGES, Method, Stage

# A tenth more than a network's own steps, in the place of its blocks': every method trains for about as long.
METHOD = Method("lsq", start=RangeInit("lsq"), joint=(Stage("steps", RANGES, share=1.1),), symmetric=True)
