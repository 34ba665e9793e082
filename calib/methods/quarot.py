"""QuaRot: inputs rotated, so that no channel reaches further than the others; nothing trained.

Blocks of 64 channels, as ConvRot has them, where the published one rotates all channels at once. docs/theory.md,
"Rotations".
"""

from __future__ import annotations

from intsr.calib.learn.initialize import RangeInit
from intsr.calib.learn.method import PICTURE, VIDEO, Method

METHOD = Method("quarot", start=RangeInit("output"), rotated=True, kinds=(PICTURE, VIDEO))
