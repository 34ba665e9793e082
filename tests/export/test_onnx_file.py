"""Files that are not ours: refused before any library opens what they point to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intsr.errors import ExportError
from intsr.onnx_files import read_onnx


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


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "link.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1024))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    model = _model(50, 30)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outside the model's folder"):
        read_onnx(path)


def test_external_data_beside_the_model_is_fine_and_missing_data_is_named(tmp_path: Path) -> None:
    model = _model(50, 30)
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert [list(tensor.dims) for tensor in read_onnx(path).graph.initializer] == [[50, 30]]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"external data 'weights\.bin' is missing"):
        read_onnx(path)


def _outside() -> TensorProto:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../outside.bin")
    return tensor


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
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outside the model's folder"):
        read_onnx(path)
