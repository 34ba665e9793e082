"""The builder of graphs, and files that are not ours: refused before any library opens what they point to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intsr.errors import ExportError
from intsr.export.onnx.builder import ALIGNMENT_BYTES, ExternalData, GraphBuilder
from intsr.onnx_files import read_onnx
from intsr.targets.lowering import LOWERINGS


def _model(rows: int, columns: int) -> onnx.ModelProto:
    """y = x W with W (rows, columns)."""
    weight = numpy_helper.from_array(np.ones((rows, columns), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, rows))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, columns))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))


@pytest.mark.parametrize("content", [b"", b"hello this is not onnx" * 10, b"\x08\x07" * 3])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not an ONNX model") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def _outside(location: str = "../outside.bin") -> TensorProto:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _refused(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outside the model's folder"):
        read_onnx(path)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "link.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1024))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    model = _model(50, 30)
    model.graph.initializer[0].CopyFrom(_outside(location))
    _refused(model, folder / "model.onnx")


@pytest.mark.parametrize("place", ["attribute", "subgraph", "sparse"])
def test_external_data_is_found_wherever_a_tensor_may_be(tmp_path: Path, place: str) -> None:
    model = _model(5, 3)
    if place == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=_outside()))
    elif place == "subgraph":
        inner = helper.make_graph([], "inner", [], [], [_outside()])
        model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner))
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(_outside())
    _refused(model, tmp_path / "model.onnx")


def test_external_data_beside_the_model_is_fine_and_missing_data_is_named(tmp_path: Path) -> None:
    model = _model(50, 30)
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert [list(tensor.dims) for tensor in read_onnx(path).graph.initializer] == [[50, 30]]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"external data 'weights\.bin' is missing"):
        read_onnx(path)


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
