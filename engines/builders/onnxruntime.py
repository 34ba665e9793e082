"""The `onnxruntime` target: the checked graph itself, as the reference and fallback. Nothing is compiled ahead."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import numpy as np

from intsr.cli.console import Stopwatch
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.optional import require
from intsr.runtime.backends.codes import Codes, codes_from_shape
from intsr.runtime.backends.onnxruntime import WEIGHTS_NAME, create_session
from intsr.runtime.backends.packed import ONNX_MAGIC, is_packed, pack_member, split_member

# What one protobuf can hold, less its graph.
LARGEST_MODEL_BYTES = 2**31 - 2**24


def build(
    onnx_path: Path, plan_path: Path, options: BuildOptions, largest_model_bytes: int = LARGEST_MODEL_BYTES
) -> BuildReport:
    """Pull the weights into one file, and open a session once so that a bad graph fails here.

    The file is an ONNX model; above `largest_model_bytes` a packed one whose weights lie beside the graph.
    `peak_bytes` is left 0. Raises ONNX Runtime's own errors.
    """
    onnx = require("onnx", "the onnxruntime target")
    onnxruntime = require("onnxruntime", "the onnxruntime target")
    watch = Stopwatch()
    model = onnx.load(onnx_path)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= largest_model_bytes:
        onnx.save_model(model, plan_path)
    else:
        with tempfile.TemporaryDirectory(dir=plan_path.parent) as folder:
            graph_path = Path(folder) / "graph.onnx"
            onnx.save_model(model, graph_path, save_as_external_data=True, location=WEIGHTS_NAME)
            pack_member(ONNX_MAGIC, graph_path, graph_path.with_name(WEIGHTS_NAME), plan_path)
    del model
    with plan_path.open("rb") as file:
        # Not closed before the last view of it goes.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    create_session(onnxruntime, memoryview(mapped), onnxruntime.SessionOptions(), plan_path)
    return BuildReport(
        seconds=watch.seconds,
        plan_bytes=plan_path.stat().st_size,
        peak_bytes=0,
        library="onnxruntime",
        library_version=onnxruntime.__version__,
    )


def places_of_codes(member_path: Path) -> list[Codes]:
    """Return where a member has int8 weights: in the ONNX model itself, or in the weights beside its graph."""
    onnx = require("onnx", "the onnxruntime target")
    data = np.memmap(member_path, np.uint8, "r").data
    packed = is_packed(ONNX_MAGIC, data)
    if packed:
        graph, weights = split_member(ONNX_MAGIC, data, member_path)
        start = len(data) - len(weights)
    else:
        graph, start = bytes(data), 0
    found: list[Codes] = []
    for tensor in onnx.load_model_from_string(graph).graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        if packed:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            offset = start + int(facts["offset"])
        else:
            # Initializers lie in the file in their order.
            offset = graph.index(tensor.raw_data, start)
            start = offset + len(tensor.raw_data)
        found.append(codes_from_shape(offset, tensor.dims))
    return found
