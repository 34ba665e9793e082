from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.engines.builders.onnx_layers import OnnxLayer
from intsr.engines.builders.tensorrt_log import Tensor, kernels_from_log, summarize_plan
from intsr.engines.builders.types import BuildReport

FORMAT = "Format: (Arbitrary) Format with stride order = [1,2,0] }"


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> str:
    sides = ",".join(map(str, shape))
    return f"{{ Name: {name}, Dimensions: [{sides}], Strides: [{sides}], Datatype: {dtype}, {FORMAT}"


def _line(name: str, kind: str, inputs: list[str], constants: list[str], layers: list[str]) -> str:
    metadata = "".join(f"[ONNX Layer: {layer}]" for layer in layers)
    parts = (("Inputs", inputs), ("Constants", constants), ("Outputs", ()))
    tensors = ", ".join(f"{key}: [{''.join(' ' + ', '.join(part))}]" for key, part in parts)
    return f"Name: {name}, LayerType: {kind}, {tensors}, TacticName: __x_0x1, StreamId: 0, Metadata: {metadata}"


ACTIVATION = _tensor("a", (1, 64, 34, 34), "Int8")
HALF = _tensor("h", (1, 64, 32, 32), "Half")
FLOAT = _tensor("f", (4, 8, 8), "Float")
WEIGHT = _tensor("w", (64, 64, 3, 3), "Int8")
CONV = _line("conv_1_myl0_3", "correlation", [ACTIVATION], [WEIGHT], ["conv_1", "dq_0"])
# The int8 convolution's scale and bias: also carries the layer's name, but multiplies nothing.
EPILOGUE = _line("__myl_MulCastAdd_myl0_4", "kgen", [HALF], [], ["conv_1"])
LAYERS = (OnnxLayer("conv_1", "Conv", 1000), OnnxLayer("dq_0", "DequantizeLinear"))


def _log(*lines: str) -> list[str]:
    return ["Some other message", "Layers:\n" + "\n".join(lines), "Total Activation Memory: 4096 bytes"]


def test_a_real_line() -> None:
    line = (
        "Name: matmul_28+matmul_20_myl0_1, LayerType: gemm, Inputs: [ { Name: k_arg__bb1_1_myl0, Dimensions: "
        "[1,256,128], Strides: [32768,128,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major "
        "linear format }], Constants: [ { Name: dconst_myl0, Dimensions: [1,128,256], Strides: [32768,256,1], "
        "StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: c_myl0, "
        "Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format "
        "}], Outputs: [ { Name: out_myl0, Dimensions: [1,256,256], Strides: [65536,256,1], StrideOrder: [2,1,0], "
        "Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, "
        "Metadata: [ONNX Layer: matmul_28][ONNX Layer: matmul_20]"
    )
    (kernel,) = kernels_from_log([line])
    assert (kernel.name, kernel.kind, kernel.tactic) == ("matmul_28+matmul_20_myl0_1", "gemm", "__myelin_CASK_STUB")
    assert kernel.inputs == (Tensor("k_arg__bb1_1_myl0", (1, 256, 128), "Int8"),)
    assert [(t.shape, t.dtype) for t in kernel.constants] == [((1, 128, 256), "Int8"), ((1,), "Float")]
    assert kernel.outputs[0].dtype == "Half"
    assert kernel.onnx_layers == ("matmul_28", "matmul_20")
    assert kernel.runs_on_int8


def test_a_kernel_with_nothing_in_it_and_other_messages() -> None:
    line = (
        "Name: __mye3279_myl0_2, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , "
        "StreamId: 0, EventId: 1, Metadata: "
    )
    (kernel,) = kernels_from_log(["Name: something else", "LayerType: none", line])
    assert (kernel.kind, kernel.inputs, kernel.onnx_layers, kernel.multiplies) == ("signal", (), (), False)


@given(st.lists(st.text("abz/_.:[]+-0123456789", min_size=1), max_size=4), st.sampled_from(["kgen", "gemm"]))
def test_names_with_brackets_survive(layers: list[str], kind: str) -> None:
    (kernel,) = kernels_from_log([_line("k_myl0_1", kind, [ACTIVATION, HALF], [WEIGHT], layers)])
    assert kernel.onnx_layers == tuple(layers)
    assert [tensor.dtype for tensor in kernel.inputs] == ["Int8", "Half"]


def test_an_int8_conv_counts_although_its_epilogue_is_float() -> None:
    plan = summarize_plan(_log(CONV, EPILOGUE), LAYERS)
    assert (plan["macs"], plan["int8_macs"], plan["int8_mac_share"], plan["float_layers"]) == (1000, 1000, 1.0, [])
    assert plan["activation_bytes"] == 4096
    assert plan["kernels_by_kind"] == {"correlation": 1, "kgen": 1}


def test_int8_weights_alone_are_not_int8() -> None:
    conv = _line("conv_1_myl0_3", "correlation", [HALF], [WEIGHT], ["conv_1"])
    plan = summarize_plan(_log(conv, EPILOGUE), LAYERS)
    assert plan["int8_macs"] == 0
    expected = {"name": "conv_1", "precision": "Half", "macs": 1000, "kernel": "conv_1_myl0_3"}
    assert plan["float_layers"] == [expected]


def test_a_layer_that_no_kernel_names_counts_as_not_int8() -> None:
    layers = (*LAYERS, OnnxLayer("lost", "Conv", 3000))
    plan = summarize_plan(_log(CONV, _line("__myl_Mul_myl0_1", "kgen", [HALF], [], ["lost"])), layers)
    assert (plan["macs"], plan["unmatched_macs"], plan["int8_mac_share"]) == (4000, 3000, 0.25)
    assert plan["float_layers"] == [{"name": "lost", "precision": "unknown", "macs": 3000, "kernel": ""}]


@pytest.mark.parametrize("name", ["conv_1_myl0_3", "conv_1_U80_myl0_3", "b_U7+conv_1_U8_myl0_3"])
def test_a_kernel_called_after_the_layer_wins_over_one_that_mentions_it(name: str) -> None:
    conv = _line(name, "correlation", [ACTIVATION], [WEIGHT], ["conv_1", "b"])
    other = _line("linear_7_myl0_9", "gemm", [HALF], [], ["linear_7", "conv_1"])
    layers = (*LAYERS, OnnxLayer("linear_7", "MatMul", 500))
    plan = summarize_plan(_log(conv, other), layers)
    assert [layer["name"] for layer in plan["float_layers"]] == ["linear_7"]


def test_float32_gemms_are_counted_and_float32_convolutions_are_not_gemms() -> None:
    gemm = _line("m_myl0_1", "gemm", [FLOAT, FLOAT], [], ["m"])
    fused = _line("_gemm_mha_v2_myl0_5", "kgen", [HALF, HALF], [], ["m", "s"])
    conv = _line("conv_1_myl0_3", "correlation", [FLOAT], [], ["conv_1"])
    softmax = _line("__myl_ExpSumDiv_myl0_2", "kgen", [FLOAT], [], ["m", "s"])
    layers = (OnnxLayer("m", "MatMul", 10, True), OnnxLayer("s", "Softmax"), *LAYERS)
    assert summarize_plan(_log(gemm, softmax, conv), layers)["fp32_gemms"] == 1
    plan = summarize_plan(_log(fused), layers)
    assert (plan["fp32_gemms"], plan["attention_macs"], plan["kernels_by_kind"]) == (0, 10, {"mha": 1})


def test_kernels_that_only_quantize_or_copy_are_counted() -> None:
    layers = (OnnxLayer("q", "QuantizeLinear"), OnnxLayer("silu", "Mul"))
    lines = [
        _line("a", "kgen", [HALF], [], ["q"]),
        _line("b", "kgen", [HALF], [], ["silu", "q"]),
        _line("c", "kgen", [HALF], [], []),
        _line("d", "signal", [], [], []),
    ]
    plan = summarize_plan(_log(*lines), layers)
    assert (plan["quantize_kernels"], plan["reformat_kernels"]) == (1, 1)


def test_resblock_runs_on_int8(resblock_build: tuple[BuildReport, Path]) -> None:
    plan = resblock_build[0].plan
    assert plan["macs"] == plan["int8_macs"] == 2 * 32 * 32 * 9 * 16 * 16
    assert plan["unmatched_macs"] == 0 and plan["float_layers"] == []
    assert plan["kernels"] == len(plan["layers"]) and plan["int8_mac_share"] == 1.0
    assert plan["kernels_by_kind"]["correlation"] == 2
    # norm, SiLU, pad, shift and quantizer: no kernel is left that only quantizes
    assert plan["activation_bytes"] > 2 * 32 * 16 * 16 and plan["weight_bytes"] >= 2 * 32 * 32 * 9


def test_attention_is_fused_and_its_linears_run_on_int8(attention_build: tuple[BuildReport, Path]) -> None:
    plan = attention_build[0].plan
    assert plan["int8_mac_share"] == 1.0 and plan["unmatched_macs"] == 0
    assert plan["fp32_gemms"] == 0
    # self-attention, and cross-attention to constants: one kernel each
    assert plan["kernels_by_kind"]["mha"] == 2
    merged = [kernel for kernel in plan["layers"] if kernel["name"].count("matmul") == 3]
    assert len(merged) == 1, "the three projections of one input share a GEMM"
    assert plan["attention_macs"] == 2 * 64 * 64 * 64 + 2 * 64 * 7 * 64


@pytest.mark.parametrize("quantized", [True, False])
def test_what_does_not_run_on_int8_is_found(build_rtx, graphs: ModuleType, quantized: bool) -> None:
    """Per-tensor scales of shape (1,) instead of rank 0 make the builder give up int8 for convolutions, silently."""
    plan = build_rtx(graphs.resblock(16, 8, quantized=quantized, scale=[0.05]))[0].plan
    assert plan["int8_mac_share"] == 0.0 and plan["unmatched_macs"] == 0
    assert [(layer["precision"], layer["macs"]) for layer in plan["float_layers"]] == [("Half", 16 * 16 * 9 * 64)] * 2
