"""SVDQuant: a float branch for each layer's largest singular directions, searched smoothing, nothing trained.

Published for linear layers and groups of 64; here every integer layer has one grid a tensor. docs/theory.md,
"Branches".
"""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import PICTURE, VIDEO, Method

START = RangeInit("output", let=True)
METHOD = Method("svdquant", let="channel", start=START, rank=32, kinds=(PICTURE, VIDEO))
