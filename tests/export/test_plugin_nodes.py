"""GroupNorm and its quantizer as one node: the numbers of the graph that it stands for, and where it must not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from folding import Folded
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.engines.builders.onnx_layers import plugin_counts
from intsr.export.graphs import load_export
from intsr.export.lower.network import lower_network
from intsr.export.lower.plugins.group_norm import CODES, HALVES, fuse_group_norm_into_plugin
from intsr.export.lower.write.group_norm import GroupNorm, write_group_norm
from intsr.export.onnx.builder import GraphBuilder
from intsr.export.pipeline import export_model
from intsr.kernels.launches.group_norm_plugin import NAMESPACE, PluginNorm
from intsr.kernels.reference.group_norm import group_norm_plugin
from intsr.targets import lowering_from_name
from intsr.targets.lowering import LOWERINGS
from intsr.types import TensorInfo

Array = NDArray[Any]


def run_node(node: onnx.NodeProto, x: Array, constants: dict[str, Array]) -> Array:
    """The operator by its reference, in the types of ONNX."""
    a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    gamma, beta, shift, multiplier = vectors = tuple(constants[name] for name in node.input[1:])
    assert all(v.dtype == np.float32 and v.shape == (x.shape[1],) for v in vectors)
    norm = PluginNorm(a["groups"], a["epsilon"], bool(a["activation"]), a["lowest"], a["highest"])
    y = group_norm_plugin(x, (gamma, beta, shift, multiplier), norm, node.op_type == CODES)
    return y if node.op_type == CODES else y.astype(x.dtype)


def values_in_onnxruntime(model: onnx.ModelProto, feed: dict[str, Array], names: list[str]) -> dict[str, Array]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    # Fused nodes would round elsewhere; as it is, each node is ONNX's own definition.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


def differences(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, tuple[str, float, float]]:
    """Each node of ours on the original graph's own input: value -> (operator, share that differs, most).

    Most is in codes, or relative to the value's spread.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    fuse_group_norm_into_plugin(rewritten, Path())
    onnx.checker.check_model(rewritten, full_check=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewritten.graph.initializer}
    ours = [node for node in rewritten.graph.node if node.domain == NAMESPACE]
    needed = list(dict.fromkeys(name for node in ours for name in (node.input[0], node.output[0])))
    inputs = {info.name for info in model.graph.input}
    values = values_in_onnxruntime(model, feed, [name for name in needed if name not in inputs]) | feed
    result = {}
    for node in ours:
        expected = values[node.output[0]]
        got = run_node(node, values[node.input[0]], constants)
        assert got.dtype == expected.dtype and got.shape == expected.shape
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        unit = 1.0 if node.op_type == CODES else float(expected.astype(np.float64).std())
        result[node.output[0]] = (node.op_type, float((difference > 0).mean()), float(difference.max() / unit))
    return result


def norm_graph(
    shape: tuple[int, ...] = (1, 16, 8, 8),
    *,
    activation: bool = True,
    let: bool = False,
    shift: float = 0.0,
    bits: int = 8,
    zero_point: int = 0,
    quantized: bool = True,
) -> onnx.ModelProto:
    """x -> GroupNorm [-> SiLU] [-> Mul] [-> Sub] [-> Clip] [-> Q, DQ] -> y."""
    rng, b = np.random.default_rng(1), GraphBuilder(LOWERINGS["symmetric-rtx-f32"])
    gamma, beta, inverse, offset = (rng.normal(1, 0.3, shape[1]).astype(np.float32) for _ in range(4))
    value = write_group_norm(b, "x", GroupNorm("norm", shape, 4, gamma, beta, 1e-6))
    if activation:
        value = b.op("Mul", [value, b.op("Sigmoid", [value], "silu.sigmoid")], "silu")
    columns = (1, -1, 1, 1)
    if let:
        value = b.op("Mul", [value, b.constant("let", inverse.reshape(columns))], "scaled")
        value = b.op("Sub", [value, b.constant("shift", 0.1 * offset.reshape(columns))], "shifted")
    elif shift:
        value = b.op("Sub", [value, b.constant("shift", np.float32(shift))], "shifted")
    scale = np.float32(6 / 2**bits)
    if bits < 8:
        ends = [b.constant(n, np.float32(scale * v)) for n, v in (("low", -3), ("high", 2**bits - 4))]
        value = b.op("Clip", [value, *ends], "clipped")
    if quantized:
        kind = np.uint8 if zero_point else np.int8
        grid = [b.constant("scale", scale), b.constant("zero", np.array(zero_point, kind))]
        value = b.op("DequantizeLinear", [b.op("QuantizeLinear", [value, *grid], "codes"), *grid], "dequantized")
    x, y = (TensorInfo(name, shape, "float32") for name in "xy")
    return b.model("norm", [x], [(value, y)])


def sample(shape: tuple[int, ...] = (1, 16, 8, 8)) -> dict[str, Array]:
    return {"x": np.random.default_rng(2).normal(2, 3, shape).astype(np.float32)}


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("options", [{}, {"shift": 1.75}, {"let": True}, {"bits": 6}, {"let": True, "bits": 4}])
def test_codes_equal_the_graphs_up_to_ties(activation: bool, options: dict[str, Any]) -> None:
    shape = (2, 32, 24, 20)
    model = norm_graph(shape, activation=activation, **options)
    ((kind, share, most),) = differences(model, sample(shape)).values()
    # 30720 codes: at most three on the other side of a tie, by one.
    assert kind == CODES and most <= 1 and share <= 1e-4


@pytest.mark.parametrize("let", [True, False])
def test_without_a_quantizer_the_values_are_the_graphs(let: bool) -> None:
    model = norm_graph(let=let, quantized=False)
    ((kind, _, most),) = differences(model, sample()).values()
    assert kind == HALVES and most < 1e-5


@pytest.mark.parametrize("lowering", ["symmetric-plugins", "symmetric-rtx-f32"])
def test_a_whole_model_node_by_node(tiny_folded: Folded, lowering: str) -> None:
    """Every norm of the three networks, on the numbers that it gets there."""
    shape, found = (1, 3, 64, 64), 0
    value = np.random.default_rng(0).uniform(-1, 1, shape).astype(LOWERINGS[lowering].float_dtype)
    for network in tiny_folded.values():
        model, info_in, info_out = lower_network(network, LOWERINGS[lowering], value.shape)
        norms = sum(node.op_type == "InstanceNormalization" for node in model.graph.node)
        results = differences(model, {info_in.name: value})
        exact = lowering.endswith("f32")
        for name, (kind, share, most) in results.items():
            limits = (1e-3 if exact else 0.1, 1) if kind == CODES else (1, 1e-4 if exact else 0.02)
            assert share <= limits[0] and most <= limits[1], (name, kind, share, most)
        found += len(results)
        assert 0 < len(results) <= norms and any(kind == CODES for kind, *_ in results.values())
        value = values_in_onnxruntime(model, {info_in.name: value}, [info_out.name])[info_out.name]
    assert found > 20


def looked_into() -> onnx.ModelProto:
    model = norm_graph()
    inner = next(n for n in model.graph.node if n.op_type == "InstanceNormalization").output[0]
    model.graph.output.append(helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    return model


def changed(constant: str, array: Array, **options: Any) -> onnx.ModelProto:
    model = norm_graph(**options)
    tensor = next(t for t in model.graph.initializer if t.name == constant)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), constant))
    return model


@pytest.mark.parametrize(
    "model",
    [
        norm_graph((1, 16, 5, 5)),
        norm_graph((1, 12, 8, 8)),
        norm_graph((1, 16, 64)),
        looked_into(),
        changed("norm.one", np.full(4, 2)),
        changed("norm.weight", np.ones((1, 16, 8, 1))),
    ],
    ids=["pixels", "channels", "three sides", "read inside", "factors of its own", "factors by pixel"],
)
def test_what_the_node_does_not_stand_for_stays_as_it_is(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert fuse_group_norm_into_plugin(model, Path()) == 0 and model.SerializeToString() == before


@pytest.mark.parametrize("reader", ["norm.add", "silu"])
def test_what_others_read_too_stays_a_value(reader: str) -> None:
    """The node ends in front of the fork."""
    model = norm_graph(shift=0.5)
    model.graph.node.append(helper.make_node("Relu", [reader], ["other"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, (1, 16, 8, 8)))
    ((value, (kind, _, most)),) = differences(model, sample()).items()
    assert (value, kind) == (reader, HALVES) and most < 1e-5
    fuse_group_norm_into_plugin(model, Path())
    assert "QuantizeLinear" in [node.op_type for node in model.graph.node]


def test_an_asymmetric_quantizer_and_a_factor_of_zero_stay_behind() -> None:
    factors = np.ones((1, 16, 1, 1))
    factors[0, 3] = 0
    for model, left in ((norm_graph(zero_point=7), "QuantizeLinear"), (changed("let", factors, let=True), "Mul")):
        fuse_group_norm_into_plugin(model, Path())
        assert plugin_counts(model) == {HALVES: 1} and left in [node.op_type for node in model.graph.node]


def test_an_export_says_its_lowering_and_keeps_no_constant_unread(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    lowering = lowering_from_name("tensorrt", ("group-norm",))
    export_model(tiny_model, tiny_calibration, lowering, 16, tmp_path / "onnx")
    assert load_export(tmp_path / "onnx").lowering == "symmetric-plugins"
    for name in ("encoder", "unet", "decoder"):
        model = onnx.load(tmp_path / "onnx" / f"{name}.onnx")
        assert plugin_counts(model)[CODES] > 0
        read = {value for node in model.graph.node for value in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= read
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20), (NAMESPACE, 1)]


@pytest.mark.slow
def test_constants_outside_the_model_are_read(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowering = lowering_from_name("tensorrt", ("group-norm",))
    export_model(tiny_model, tiny_calibration, lowering, 16, tmp_path / "inside")
    monkeypatch.setattr("intsr.export.graphs.EXTERNAL_DATA_BYTES", 0)
    # Shapes stay in the model, as they do at the real size; gamma and beta go.
    monkeypatch.setattr("intsr.export.onnx.builder.EXTERNAL_BYTES", 33)
    export_model(tiny_model, tiny_calibration, lowering, 16, tmp_path / "outside")
    for name in ("encoder", "unet", "decoder"):
        inside, outside = (onnx.load(tmp_path / f / f"{name}.onnx").graph for f in ("inside", "outside"))
        assert list(inside.node) == list(outside.node)
        for one, other in zip(inside.initializer, outside.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_commands_refuse_what_would_change_nothing(
    intsr: Any, tmp_path: Path, tiny_model: SRModel, tiny_calibration: Calibration
) -> None:
    export_model(tiny_model, tiny_calibration, LOWERINGS["symmetric"], 16, tmp_path / "onnx")
    end = ("--plugins", "group-norm", "-o", tmp_path / "e")
    code, _, err = intsr("compile", tmp_path / "onnx", "--target", "tensorrt", *end)
    assert code == 2 and "--plugins: together with an export folder" in err and "give it to intsr export" in err
    refused = ("export", "demo", "--target", "cpu"), ("compile", "demo", "--bits", "fp", "--target", "tensorrt-rtx")
    for command in refused:
        code, out, err = intsr(*command, *end)
        assert code == 2 and out == "" and "--plugins: together with" in err and "target tensorrt" in err
