"""Polygraphy's comparators, and where `verify` uses them."""

from __future__ import annotations

import numpy as np
import pytest

from intsr.engines.verify.agreement import verify
from intsr.engines.verify.comparison import compare_outputs
from intsr.types import TensorInfo

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
        "snr_db": 200,
        "cosine_similarity": pytest.approx(1),
        "l2": 0,
    }
    assert capsys.readouterr().out == ""


class Adds:
    """Networks that add a constant each."""

    network_names = ("first", "second")

    def __init__(self, constant: float) -> None:
        self.constant = np.float32(constant)
        self.input = self.output = TensorInfo("x", (1, 3, 8, 8), "float32")

    def network(self, name: str) -> Adds:
        return self

    def run(self, x: np.ndarray) -> np.ndarray:
        return x + self.constant

    def close(self) -> None:
        pass


def test_verify_gives_the_mean_of_each_metric_by_network() -> None:
    x = np.linspace(-1, 0, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    result = verify(Adds(0.125), Adds(0), [("a", x), ("b", x)], compare=compare_outputs)
    assert list(result.metrics) == ["first", "second"]
    assert result.metrics["first"]["l2"] == pytest.approx(0.125 * np.sqrt(192), rel=1e-5)
    assert verify(Adds(0.125), Adds(0), [("a", x)]).metrics == {}
