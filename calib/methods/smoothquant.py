"""SmoothQuant, of video models: MaxMin of equalized inputs, s = (max|x_c| / max|W_c|)**0.5. docs/theory.md, "LET".

What `maxmin+let` is to picture models, by the name that the field's tables of video transformers have for it.
"""

from __future__ import annotations

from functools import partial

from intsr.calib.learn.method import VIDEO, Method
from intsr.calib.observe.video import observe_video

# The published exponent.
ALPHA = 0.5
METHOD = Method("smoothquant", observe_video=partial(observe_video, alpha=ALPHA), kinds=(VIDEO,))
