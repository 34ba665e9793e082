"""The `cpu` target: a QDQ ONNX graph as an OpenVINO IR, and what its CPU plugin makes of it on this machine."""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from intsr.cli.console import Stopwatch
from intsr.engines.builders.onnx_layers import layers_from_onnx
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.memory import resident_bytes
from intsr.onnx_files import read_onnx
from intsr.optional import require
from intsr.runtime.backends.compatibility import INFERENCE_BYTES, cpu_description
from intsr.runtime.backends.openvino.backend import resolve_precision
from intsr.runtime.backends.openvino.int8 import make_floats_of_wide_codes
from intsr.runtime.backends.packed import IR_MAGIC, pack_member
from intsr.targets.lowering import STATISTICS

# Nodes of the runtime model that stand for memory, not for a kernel.
_NOT_KERNELS = ("Const", "Input", "Output")
_BEHIND = re.compile(r"/DequantizationMultiply$|\.add_bias(?=_\d+$|$)")
_GEMM_KINDS = ("Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")


def build(onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Convert one graph; weights keep their type (int8 stays int8). `peak_bytes` is left 0.

    Raises OpenVINO's own errors for a graph that its ONNX frontend cannot read.
    """
    openvino = require("openvino", "the cpu target")
    watch = Stopwatch()
    # Unlike read_model it simplifies the graph, which opening an engine would do every time: a third fewer nodes.
    model = openvino.convert_model(str(onnx_path))
    with tempfile.TemporaryDirectory(dir=plan_path.parent) as folder:
        xml_path = Path(folder) / "model.xml"
        openvino.save_model(model, str(xml_path), compress_to_fp16=False)
        # It holds its matrices turned, in copies; what is read back is mapped.
        del model
        keep_precise(xml_path)
        pack_member(IR_MAGIC, xml_path, xml_path.with_suffix(".bin"), plan_path)
        seconds = watch.seconds
        plan = _plan(openvino, xml_path, onnx_path) if options.detailed else {}
    return BuildReport(seconds, plan_path.stat().st_size, 0, "openvino", openvino.__version__, plan=plan)


def keep_precise(xml_path: Path) -> None:
    """Have GroupNorm's statistics computed in float32 also where INFERENCE_PRECISION_HINT says bf16.

    They are vectors, so that it costs nothing, and bf16's eight bits would move every channel's level. The attribute
    is the IR's own, which OpenVINO's own passes write; its Python API has no name for it.
    """
    tree = ElementTree.parse(xml_path)
    layers = tree.getroot().find("layers")
    assert layers is not None
    for layer in layers:
        if STATISTICS in layer.get("name", "") and layer.get("type") != "Const":
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(xml_path)


def _plan(openvino: Any, xml_path: Path, onnx_path: Path) -> dict[str, Any]:
    """Kernels of the compiled model on this machine's CPU: another CPU may choose others."""
    layers = layers_from_onnx(read_onnx(onnx_path))
    macs = {layer.name: layer.macs for layer in layers if layer.macs and not layer.attention}
    core = openvino.Core()
    model = core.read_model(str(xml_path))
    # As the runtime opens it here with `--precision auto`.
    quantized = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = resolve_precision("auto", quantized, capabilities, "inspect", cpu_description())
    make_floats_of_wide_codes(model)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(model, "CPU", settings)
    per_element = _inference_bytes_per_element(compiled)
    kinds: Counter[str] = Counter()
    float_layers, fp32_gemms, int8_macs = [], 0, 0
    activation_bytes = weight_bytes = 0
    unmatched = dict(macs)
    for operation in compiled.get_runtime_model().get_ops():
        info = {key: getattr(value, "value", value) for key, value in operation.get_rt_info().items()}
        kind = str(info["layerType"])
        size_bytes = _output_bytes(operation)
        if kind == "Const":
            weight_bytes += size_bytes
        else:
            activation_bytes = max(activation_bytes, size_bytes)
        if kind in _NOT_KERNELS:
            continue
        kinds[kind] += 1
        precision = str(info["runtimePrecision"])
        fp32_gemms += kind in _GEMM_KINDS and precision == "f32"
        names = str(info["originalLayersNames"]).replace("/WithoutBiases", "").split(",")
        if kind in _GEMM_KINDS:
            # Of some products only the name of what stands behind them is left.
            names = [_BEHIND.sub("", name) for name in names]
        layer_macs = sum(unmatched.pop(name) for name in dict.fromkeys(names) if name in unmatched)
        if precision in ("u8", "i8"):
            int8_macs += layer_macs
        elif layer_macs:
            float_layers.append({"name": names[0], "precision": precision, "macs": layer_macs})
    # Layers that no kernel owns up to count as not int8.
    float_layers += [{"name": name, "precision": "unknown", "macs": count} for name, count in unmatched.items()]
    return {
        "kernels": sum(kinds.values()),
        "kernels_by_kind": dict(kinds.most_common()),
        "int8_mac_share": int8_macs / sum(macs.values()) if macs else 0.0,
        "fp32_gemms": fp32_gemms,
        "activation_bytes": activation_bytes,
        "weight_bytes": weight_bytes,
        INFERENCE_BYTES: per_element,
        "macs": sum(macs.values()),
        "float_layers": float_layers,
    }


def _inference_bytes_per_element(compiled: Any) -> float:
    """How much this process grows in a first inference, for each element of the first input, whatever the tile."""
    shapes = [tuple(port.shape) for port in compiled.inputs]
    before = resident_bytes()
    compiled.create_infer_request().infer({i: np.zeros(shape, np.float32) for i, shape in enumerate(shapes)})
    return max(resident_bytes() - before, 0) / math.prod(shapes[0])


def _output_bytes(operation: Any) -> int:
    return sum(
        math.prod(output.get_shape()) * max(output.get_element_type().bitwidth, 8) // 8
        for output in operation.outputs()
        if output.get_partial_shape().is_static
    )
