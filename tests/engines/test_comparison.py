from __future__ import annotations

import numpy as np
import pytest

from intsr.engines.builders.comparison import compare_outputs

pytest.importorskip("polygraphy", reason="needs the extra rtx or tensorrt")


def test_metrics_are_what_their_names_say(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 1, (1, 4, 8, 8)).astype(np.float32)
    got = expected + rng.normal(0, 0.01, expected.shape).astype(np.float32)
    error, dot = got - expected, float((got * expected).sum())
    found = compare_outputs(got, expected)
    assert found["l2"] == pytest.approx(np.linalg.norm(error), rel=1e-5)
    assert found["cosine_similarity"] == pytest.approx(dot / np.linalg.norm(got) / np.linalg.norm(expected), rel=1e-5)
    assert found["snr_db"] == pytest.approx(10 * np.log10(expected.var() / error.var()), abs=0.05)
    assert compare_outputs(expected, expected) == {
        "snr_db": np.inf,
        "cosine_similarity": pytest.approx(1),
        "l2": 0,
    }
    assert capsys.readouterr().out == ""
