from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intsr.errors import ExportError
from intsr.export.onnx.builder import ALIGNMENT_BYTES, ExternalData, GraphBuilder
from intsr.targets.lowering import LOWERINGS


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


def test_external_data_is_written_once_for_all_models(tmp_path: Path) -> None:
    first, second = (np.full(1000, value, np.float32) for value in (1.0, 2.0))
    data, places = ExternalData(tmp_path / "x.data"), []
    for arrays in ([first, second], [second, first + 2, first]):
        with data:
            for array in arrays:
                tensor = data.add("a", array)
                entries = {entry.key: entry.value for entry in tensor.external_data}
                offset, length = int(entries["offset"]), int(entries["length"])
                places.append((offset, length, array))
    content = (tmp_path / "x.data").read_bytes()
    for offset, length, array in places:
        np.testing.assert_array_equal(np.frombuffer(content[offset : offset + length], np.float32), array)
    assert [offset // ALIGNMENT_BYTES for offset, _, _ in places] == [0, 1, 1, 2, 0]
