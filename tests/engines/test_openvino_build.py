"""What building for the `cpu` target takes of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.types import Build, BuildOptions
from intsr.export.onnx.builder import ExternalData, GraphBuilder
from intsr.targets.lowering import LOWERINGS
from intsr.types import TensorInfo

WIDTH, LAYERS = 2048, 6
WEIGHT_BYTES = 2 * LAYERS * WIDTH**2 * 4


def write_graph(path: Path, count: int) -> Path:
    """A float32 graph of `count` convolutions and as many matrices, weights beside it as large ones have."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32) / np.float32(WIDTH**0.5)

    with ExternalData(path.with_suffix(".onnx.data")) as data:
        graph = GraphBuilder(LOWERINGS["asymmetric-cpu"], data)
        value = "x"
        for index in range(count):
            value = graph.op("Conv", [value, graph.constant(f"c{index}", weight(WIDTH, WIDTH, 1, 1))], f"conv{index}")
        value = graph.op("Reshape", [value, graph.constant("rows", [1, WIDTH, 16])], "rows")
        value = graph.op("Transpose", [value], "tokens", perm=[0, 2, 1])
        for index in range(count):
            value = graph.op("MatMul", [value, graph.constant(f"m{index}", weight(WIDTH, WIDTH))], f"linear{index}")
        given, made = TensorInfo("x", (1, WIDTH, 4, 4), "float32"), TensorInfo("y", (1, 16, WIDTH), "float32")
        model = graph.model("g", [given], [(value, made)])
    onnx.save_model(model, path)
    return path


def test_what_converting_copies_is_gone_before_the_network_is_compiled(tmp_path: Path) -> None:
    peaks, packed = [], []
    for count in (1, LAYERS + 1):
        build = Build(write_graph(tmp_path / f"{count}.onnx", count), tmp_path / f"{count}.ir", BuildOptions("cpu"))
        (report,) = build_each_in_child("intsr.engines.builders.openvino", [build])
        assert report.plan["macs"] == 2 * count * 16 * WIDTH**2
        peaks.append(report.peak_bytes)
        packed.append(report.plan["weight_bytes"])
    # As they lie in the file, and as the CPU has them; converting makes another copy of matrices, half of all here.
    assert peaks[1] - peaks[0] < 1.25 * WEIGHT_BYTES + packed[1] - packed[0]
