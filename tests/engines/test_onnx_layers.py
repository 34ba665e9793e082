from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intsr.engines.builders.onnx_layers import OnnxLayer, layers_from_onnx
from intsr.errors import BuildError


def _model(op_type: str, shapes: list[tuple[int, ...]], out: tuple[int, ...] | None, **attributes: object) -> object:
    """x -> op_type(x, weights of the other shapes) -> y."""
    weights = [numpy_helper.from_array(np.ones(s, np.float32), f"w{i}") for i, s in enumerate(shapes[1:])]
    node = helper.make_node(op_type, ["x", *(w.name for w in weights)], ["y"], name="layer", **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shapes[0]), ("y", out))]
    return helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:], weights))


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        # 8 x 8 x 4 outputs, each of 3 x 3 x 2 products
        (_model("Conv", [(1, 2, 8, 8), (4, 2, 3, 3)], (1, 4, 8, 8), pads=[1] * 4), 8 * 8 * 4 * 18),
        (_model("Conv", [(1, 2, 8, 8), (4, 2, 3, 3)], (1, 4, 3, 3), strides=[2, 2]), 3 * 3 * 4 * 18),
        (_model("Conv", [(1, 4, 8, 8), (4, 1, 3, 3)], (1, 4, 6, 6), group=4), 6 * 6 * 4 * 9),
        (_model("ConvTranspose", [(1, 4, 8, 8), (4, 2, 2, 2)], (1, 2, 16, 16), strides=[2, 2]), 8 * 8 * 4 * 2 * 4),
        (_model("MatMul", [(1, 7, 5), (5, 3)], (1, 7, 3)), 7 * 5 * 3),
        (_model("Gemm", [(7, 5), (3, 5)], (7, 3), transB=1), 7 * 5 * 3),
        (_model("Gemm", [(5, 7), (5, 3)], (7, 3), transA=1), 7 * 5 * 3),
        (_model("Add", [(1, 7, 5), (5,)], (1, 7, 5)), 0),
    ],
)
def test_macs_of_one_layer(model: onnx.ModelProto, macs: int) -> None:
    assert [layer.macs for layer in layers_from_onnx(model)] == [macs]


def test_attention_is_not_linear_even_with_constant_keys_and_values(graphs: ModuleType) -> None:
    tokens, width, context = 64, 64, 7
    layers = layers_from_onnx(graphs.attention_block(tokens, width, 2, context).model())
    linear = [layer.macs for layer in layers if layer.macs and not layer.attention]
    attention = [layer.macs for layer in layers if layer.attention]
    assert linear == [tokens * width * width] * 6
    assert attention == [tokens * tokens * width] * 2 + [tokens * context * width] * 2


def test_a_matmul_of_two_activations_is_no_layer_with_weights(graphs: ModuleType) -> None:
    graph = graphs.Graph()
    x = graph.input("x", (1, 4, 4))
    graph.output(graph.op("MatMul", x, graph.silu(x)), "y", (1, 4, 4))
    assert sum(layer.macs for layer in layers_from_onnx(graph.model())) == 0


def test_a_node_without_a_name_is_called_after_its_output() -> None:
    model = _model("MatMul", [(1, 7, 5), (5, 3)], (1, 7, 3))
    assert isinstance(model, onnx.ModelProto)
    model.graph.node[0].name = ""
    assert layers_from_onnx(model) == (OnnxLayer("node_of_y", "MatMul", 105),)


def test_an_unknown_shape_is_an_error_not_a_gap(graphs: ModuleType) -> None:
    graph = graphs.Graph()
    x = graph.input("x", ("n", 4, 8, 8))
    graph.output(graph.conv(x, 4, 4), "y", None)
    with pytest.raises(BuildError, match=r"conv_\d+: the shape of .* is not known; expected static shapes"):
        layers_from_onnx(graph.model())
