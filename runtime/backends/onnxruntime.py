"""The `onnxruntime` target: an ONNX graph on ONNX Runtime's CPU provider; the reference and fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError
from intsr.optional import require
from intsr.runtime.backends.protocol import (
    Network,
    SessionOptions,
    checked_input,
    closed_error,
    open_each,
    ran_out_of_memory,
)

if TYPE_CHECKING:
    from intsr.bundle import Bundle
    from intsr.manifest import NetworkEntry

_ERRORS_ONLY = 3


class ONNXRuntimeNetwork:
    """One session on the CPU, all float parts in the graph's own types."""

    def __init__(self, entry: NetworkEntry, session: Any, where: object = "engine") -> None:
        self.input, self.output = entry.input, entry.output
        self.precision = {"float16": "f16"}.get(entry.input.dtype, "f32")
        self._session, self._where = session, where

    def run(self, x: Array) -> Array:
        if self._session is None:
            raise closed_error(self._where)
        feeds = {self.input.name: checked_input(x, self.input)}
        try:
            return np.asarray(self._session.run([self.output.name], feeds)[0], dtype=self.output.dtype)
        except Exception as error:
            if ran_out_of_memory(error):
                text = str(error).strip().splitlines()[-1]
                raise OutOfMemoryError(self._where, f"ONNX Runtime is out of memory ({text})") from error
            raise

    def close(self) -> None:
        self._session = None


def open_networks(bundle: Bundle, options: SessionOptions) -> list[Network]:
    """Raises MissingLibraryError, UsageError, EngineMismatchError where ONNX Runtime refuses a graph."""
    return open_each(open_network, bundle, options)


def open_network(bundle: Bundle, entry: NetworkEntry, options: SessionOptions) -> ONNXRuntimeNetwork:
    """Raises MissingLibraryError, UsageError, EngineMismatchError where ONNX Runtime refuses the graph."""
    onnxruntime = require("onnxruntime", "an engine of target onnxruntime")
    if options.device not in (None, "cpu"):
        raise UsageError("--device", repr(options.device), "cpu for an engine of target onnxruntime")
    if options.precision == "bf16":
        raise UsageError("--precision", "bf16", "auto or f32 for an engine of target onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = options.threads or 0
    with bundle.member(entry.member) as view:
        graph = bytes(view)
    try:
        session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but this one.
        if ran_out_of_memory(error):
            raise
        raise EngineMismatchError(
            f"{bundle.path}:{entry.member}",
            f"ONNX Runtime {onnxruntime.__version__} refuses it ({str(error).strip().splitlines()[0]})",
            f"built with {bundle.manifest.library_version}",
            "compile the model again: intsr compile MODEL --target onnxruntime",
        ) from error
    for info, ports in ((entry.input, session.get_inputs()), (entry.output, session.get_outputs())):
        got = [(port.name, tuple(port.shape)) for port in ports]
        if got != [(info.name, info.shape)]:
            raise EngineMismatchError(bundle.path, f"{entry.name} has {got}", f"{info.name} {info.shape}")
    return ONNXRuntimeNetwork(entry, session, bundle.path)
