"""Agreement in numbers, ours and Polygraphy's."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from intsr.engines.verify.agreement import check_agreement, default_bound_db, polygraphy_metrics, verify
from intsr.errors import UsageError, VerificationError
from intsr.types import TensorInfo

polygraphy = pytest.mark.skipif(find_spec("polygraphy") is None, reason="needs the extra rtx or tensorrt")


@polygraphy
def test_metrics_are_what_their_names_say(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 1, (1, 4, 8, 8)).astype(np.float32)
    got = expected + rng.normal(0, 0.01, expected.shape).astype(np.float32)
    error, dot = got - expected, float((got * expected).sum())
    found = polygraphy_metrics(got, expected)
    assert found["l2"] == pytest.approx(np.linalg.norm(error), rel=1e-5)
    assert found["cosine_similarity"] == pytest.approx(dot / np.linalg.norm(got) / np.linalg.norm(expected), rel=1e-5)
    assert found["snr_db"] == pytest.approx(10 * np.log10(expected.var() / error.var()), abs=0.05)
    assert polygraphy_metrics(expected, expected) == {"snr_db": 200, "cosine_similarity": pytest.approx(1), "l2": 0}
    assert capsys.readouterr().out == ""


class Adds:
    network_names = ("first", "second")

    def __init__(self, constant: float, side: int = 8) -> None:
        self.constant = np.float32(constant)
        self.input = self.output = TensorInfo("x", (1, 3, side, side), "float32")

    def network(self, name: str) -> Adds:
        return self

    def run(self, x: np.ndarray) -> np.ndarray:
        return x + self.constant

    def close(self) -> None:
        pass


@polygraphy
def test_verify_gives_the_mean_of_each_metric_by_network() -> None:
    x = np.linspace(-1, 0, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    result = verify(Adds(0.125), Adds(0), [("a", x), ("b", x)], compare=polygraphy_metrics)
    assert list(result.metrics) == ["first", "second"]
    assert result.metrics["first"]["l2"] == pytest.approx(0.125 * np.sqrt(192), rel=1e-5)
    assert "l2 1.73205" in result.metric_lines[0]
    assert verify(Adds(0.125), Adds(0), [("a", x)]).metric_lines == []


def test_verification_needs_pictures_finite_numbers_and_one_model() -> None:
    inputs = [("a", np.zeros((1, 3, 8, 8), np.float32))]
    same = verify(Adds(0), Adds(0), inputs)
    assert (same.end_to_end.psnr_db, same.end_to_end.max_abs_error, same.worst) == (200, 0, ("a", 200))
    with pytest.raises(VerificationError, match="no picture"):
        verify(Adds(0), Adds(0), [])
    with pytest.raises(VerificationError, match="NaN"):
        verify(Adds(np.nan), Adds(0), inputs)
    with pytest.raises(UsageError, match="first of the engine has shapes"):
        verify(Adds(0), Adds(0, side=16), inputs)
    other = Adds(0)
    other.network_names = ("first",)
    with pytest.raises(UsageError, match="the engine has networks first; expected the model's first, second"):
        verify(other, Adds(0), inputs)


def test_one_wrong_picture_is_enough_to_fail() -> None:
    class Wrong(Adds):
        def run(self, x: np.ndarray) -> np.ndarray:
            return x + (0.5 if x.max() > 0 else 1e-4)

    dark = np.linspace(-1, -0.5, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    result = verify(Wrong(0), Adds(0), [("dark", dark), ("bright", dark + 1)])
    assert result.worst[0] == "bright" and result.worst[1] < 30 < result.per_image_db["dark"]
    with pytest.raises(
        VerificationError, match=r"^engine: [\d.]+ dB on bright; expected at least 30 on every picture"
    ):
        check_agreement(result, 30.0, "engine", "mend it")


def test_bounds_are_what_correct_engines_reach() -> None:
    bounds = [default_bound_db(bits, "f32") for bits in ("fp", "w8a8", "w6a6", "w4a8", "w2a2")]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] == 60
    assert default_bound_db("w4a16", "f16") == default_bound_db("fp", "f16") < bounds[0]
