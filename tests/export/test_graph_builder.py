from __future__ import annotations

import numpy as np
import pytest

from intsr.errors import ExportError
from intsr.export.graph_builder import GraphBuilder
from intsr.export.lowering import LOWERINGS


def test_a_value_that_float16_cannot_hold_is_an_error_not_infinity() -> None:
    bias = np.array([1.0, -70000.0], np.float32)
    with pytest.raises(ExportError, match=r"conv\.bias: a constant of 70000; expected what float16 can hold"):
        GraphBuilder(LOWERINGS["symmetric"]).constant("conv.bias", bias)
    assert GraphBuilder(LOWERINGS["asymmetric"]).constant("conv.bias", bias) == "conv.bias"


def test_names_are_unique() -> None:
    builder = GraphBuilder(LOWERINGS["symmetric"])
    assert [builder.constant("a", [1]), builder.constant("a", [1]), builder.op("Relu", ["a"], "a")] == [
        "a",
        "a_1",
        "a_2",
    ]
