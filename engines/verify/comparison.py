"""Outputs of a GPU engine's network beside the reference's, by Polygraphy's comparators."""

from __future__ import annotations

from typing import Any

from intsr.optional import require
from intsr.runtime.measure.metrics import EXACT_DB

# Polygraphy's comparators, and the field of the result that each one's number is in. Its PSNR is not among them: it
# takes the largest value of the first array for the peak, and a latent's is nobody's peak.
_METRICS = {
    "snr_db": ("SnrCompareFunc", "snr"),
    "cosine_similarity": ("CosineSimilarityCompareFunc", "cosine_similarity"),
    "l2": ("L2CompareFunc", "l2_norm"),
}


def compare_outputs(got: Any, expected: Any) -> dict[str, float]:
    """Return the metrics of one output of one run by name, of arrays of the same shape.

    `snr_db` is at most EXACT_DB. Raises MissingLibraryError.
    """
    comparator = require("polygraphy.comparator", "comparing a GPU engine with its reference")
    logger = require("polygraphy.logger", "comparing a GPU engine with its reference").G_LOGGER
    results = [comparator.IterationResult(outputs={"output": array}) for array in (expected, got)]
    values: dict[str, float] = {}
    # It would print whether its own thresholds, which are not ours, are met.
    with logger.verbosity(logger.CRITICAL):
        for name, (function, field) in _METRICS.items():
            result = getattr(comparator, function)()(*results)["output"]
            values[name] = float(getattr(result, field))
    return values | {"snr_db": min(values["snr_db"], EXACT_DB)}
