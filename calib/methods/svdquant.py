"""SVDQuant: a float branch for each layer's largest singular directions, searched smoothing, nothing trained.

Published for linear layers and groups of 64; here every integer layer has one grid a tensor. docs/theory.md,
"Branches".
"""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import Method

METHOD = Method("svdquant", let="channel", start=RangeInit("output", let=True), rank=32)
