"""The `onnxruntime` target: the checked graph itself, as the reference and fallback. Nothing is compiled ahead."""

from __future__ import annotations

from pathlib import Path

from intsr.cli.console import Stopwatch
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError
from intsr.optional import require

PROTOBUF_LIMIT_BYTES = 2**31 - 1


def build(onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Pull external data into one file, and open a session once so that a bad graph fails here.

    `peak_bytes` is left 0. Raises BuildError above protobuf's 2 GB.
    """
    onnx = require("onnx", "the onnxruntime target")
    onnxruntime = require("onnxruntime", "the onnxruntime target")
    watch = Stopwatch()
    model = onnx.load(onnx_path)
    size_bytes = model.ByteSize()
    if size_bytes > PROTOBUF_LIMIT_BYTES:
        raise BuildError(onnx_path, f"{size_bytes} bytes", "at most 2 GB in one ONNX file", "use --target cpu")
    onnx.save_model(model, plan_path)
    onnxruntime.InferenceSession(str(plan_path), providers=["CPUExecutionProvider"])
    return BuildReport(
        seconds=watch.seconds,
        plan_bytes=plan_path.stat().st_size,
        peak_bytes=0,
        library="onnxruntime",
        library_version=onnxruntime.__version__,
    )
