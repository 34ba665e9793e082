"""GroupNorm in every form, in ONNX Runtime and in OpenVINO, against torch."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from intsr.engines.builders.openvino import keep_precise
from intsr.export.lower.write.group_norm import GroupNorm, write_group_norm
from intsr.export.onnx.builder import GraphBuilder
from intsr.targets.lowering import LOWERINGS, STATISTICS
from intsr.types import TensorInfo

FORMS = ("asymmetric", "asymmetric-cpu")  # instance, statistics


def graph_of(norm: GroupNorm, lowering: str) -> onnx.ModelProto:
    builder = GraphBuilder(LOWERINGS[lowering])
    x, y = (TensorInfo(name, norm.shape, "float32") for name in "xy")
    return builder.model("norm", [x], [(write_group_norm(builder, "x", norm), y)])


def in_onnxruntime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def in_torch(norm: GroupNorm, x: np.ndarray) -> np.ndarray:
    value, gamma, beta = (torch.from_numpy(v).double() for v in (x, norm.gamma, norm.beta))
    return functional.group_norm(value, norm.groups, gamma, beta, norm.epsilon).numpy()


def norm_of(rng: np.random.Generator, shape: tuple[int, ...], groups: int) -> GroupNorm:
    gamma, beta = (rng.normal(size=shape[1]).astype(np.float32) for _ in range(2))
    return GroupNorm("norm", shape, groups, gamma, beta, 1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("form", FORMS)
def test_any_shape(form, groups, of_group, height, width, seed):
    rng = np.random.default_rng(seed)
    norm = norm_of(rng, (1, groups * of_group, height, width), groups)
    # Values that differ within every group: where they do not, 1 / sqrt(eps) enlarges every rounding.
    x = rng.normal(size=norm.shape).astype(np.float32)
    x.reshape(1, groups, -1)[:, :, 0] += 3.0
    if of_group * height * width == 1:
        return
    np.testing.assert_allclose(in_onnxruntime(graph_of(norm, form), x), in_torch(norm, x), rtol=1e-3, atol=1e-3)


def nearly_flat(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a flat tile looks like inside a network, and what makes squares cancel."""
    rng = np.random.default_rng(0)
    values = np.broadcast_to(rng.normal(0, 3, (1, shape[1], *[1] * (len(shape) - 2))), shape).copy()
    if kind == "border":  # zero padding, seen through a convolution
        values[:, :, 0] += 1.0
        values[..., -1] -= 0.5
    elif kind == "one pixel apart":
        values.reshape(*shape[:2], -1)[:, :, math.prod(shape[2:]) // 2] += 2.0
    elif kind == "epsilon rules":  # all of it is near 3, and differs by no more than sqrt(eps)
        values = 3.0 + 1e-3 * rng.normal(size=shape)
    elif kind == "biased":
        values += 30.0 + 0.3 * rng.normal(size=shape)
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 32, 256, 256), (1, 32, 4096)])
@pytest.mark.parametrize("kind", ["flat", "border", "one pixel apart", "epsilon rules", "biased"])
def test_flat_values_keep_their_digits(kind, shape):
    norm = norm_of(np.random.default_rng(3), shape, 8)
    x = nearly_flat(kind, shape)
    expected, model = in_torch(norm, x), graph_of(norm, "asymmetric-cpu")
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(compiled({0: x})[0], expected, atol=1e-4)
    np.testing.assert_allclose(in_onnxruntime(model, x), expected, atol=1e-4)


def test_statistics_stay_in_float32_around_bf16(tmp_path: Path) -> None:
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no BF16")
    rng = np.random.default_rng(1)
    norm = norm_of(rng, (1, 32, 64, 64), 8)
    x = rng.normal(size=norm.shape).astype(np.float32)
    x[:, ::4] += 12.0
    expected = in_torch(norm, x)

    def error(mark: bool) -> float:
        # A convolution behind: OpenVINO leaves the tail of a graph in float32.
        model = graph_of(norm, "asymmetric-cpu")
        model.graph.node[-1].output[0] = "normed"
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.eye(32, dtype=np.float32)[:, :, None, None], "eye")
        )
        model.graph.node.append(onnx.helper.make_node("Conv", ["normed", "eye"], ["y"], name="conv"))
        path = tmp_path / "norm.xml"
        openvino.save_model(core.read_model(model.SerializeToString()), str(path), compress_to_fp16=False)
        if mark:
            keep_precise(path)
        compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        kinds = set()
        for operation in compiled.get_runtime_model().get_ops():
            info = {key: getattr(value, "value", value) for key, value in operation.get_rt_info().items()}
            if f"{STATISTICS}variance" in str(info["originalLayersNames"]):
                kinds.add(info["runtimePrecision"])
        assert kinds - {"i32"} == {"f32" if mark else "bf16"}  # i32: the axes of its reductions
        # Of each channel's level: bf16's rounding of pixels averages out, a vector's does not.
        return float(np.abs((compiled({0: x})[0] - expected).mean((2, 3))).max())

    assert error(True) < error(False) < 0.02
