"""The `cpu` target: an OpenVINO IR, read from memory and compiled for this CPU when it is opened."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.bundle import MEMBER_ALIGNMENT_BYTES, LastingMember
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError
from intsr.runtime.backends.openvino.int8 import IN_FLOAT_NOTE, integer_settings, integers_are_exact
from intsr.runtime.backends.openvino.member import split_member, unpack_xml
from intsr.runtime.backends.openvino.memory import inference_bytes
from intsr.runtime.backends.protocol import (
    LayerTime,
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

_DEVICE = "CPU"
CPU_INFO = Path("/proc/cpuinfo")


class OpenVINONetwork:
    """A compiled model with one request. precision: what OpenVINO computes the float parts in. activation_bytes: what
    running it takes beside the weights, estimated rather too high; it keeps that much from its first run on.
    notes: what the user should know of how it runs here.
    """

    def __init__(
        self,
        entry: NetworkEntry,
        compiled: Any,
        where: object = "engine",
        weights: object = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        # Some are read where they lie in the file: its mapping lives as long as the compiled model.
        self._weights = weights
        self.input, self.output = entry.input, entry.output
        self._where = f"{where}:{entry.member}"
        # get_type_name: NumPy has no bfloat16, and OpenVINO's to_dtype() says float16 for it.
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        result_bytes = math.prod(entry.output.shape) * np.dtype(entry.output.dtype).itemsize
        self.activation_bytes = inference_bytes(compiled.get_runtime_model(), result_bytes)
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        # For who runs a network by itself: results of two threads would lie in the same tensor.
        self._lock = threading.Lock()

    def run(self, x: Array) -> Array:
        with self._lock:
            return self._run(x)

    def _run(self, x: Array) -> Array:
        if self._request is None:
            raise closed_error(self._where)
        try:
            self._infer(checked_input(x, self.input))
        except RuntimeError as error:
            text = str(error).strip().splitlines()[-1]
            if ran_out_of_memory(error):
                raise OutOfMemoryError(self._where, f"OpenVINO is out of memory ({text})") from error
            raise EngineMismatchError(self._where, f"OpenVINO cannot run it ({text})") from error
        # A copy: the next call writes into the same tensor.
        return np.array(self._request.get_output_tensor(0).data, dtype=self.output.dtype, copy=True)

    def _infer(self, x: Array) -> None:
        """In a thread of OpenVINO's own. What it keeps for a caller's thread that it has run in is freed when that
        one ends; where the model is closed meanwhile, as in a pool of threads, the process ends in a crash.
        """
        try:
            self._request.start_async({0: x}, share_inputs=True)
        finally:
            # After Ctrl-C too: x must not go before.
            self._request.wait()

    def layer_times_ms(self) -> list[LayerTime]:
        """Of the last `run`, in execution order, where the network was opened with `profile`."""
        executed = [info for info in self._request.profiling_info if info.status == info.Status.EXECUTED]
        return [
            LayerTime(info.node_name, info.node_type, info.exec_type, info.real_time.total_seconds() * 1e3)
            for info in executed
        ]

    def close(self) -> None:
        with self._lock:
            self._request = self._compiled = None
            self._weights = None


def resolve_precision(requested: str, quantized: bool, capabilities: list[str], where: object, cpu: str = "") -> str:
    """`f32` or `bf16` for what is not integer. cpu: what the system says of it, see `cpu_description`.

    `auto` takes bf16 for a quantized engine where the CPU has it and is faster with it: attention and other float
    parts then cost half. Without AMX, Intel's bf16 products are slower than its float32 ones (docs/performance.md). A
    full-precision engine stays in float32, so that its name is true. Raises EngineMismatchError.
    """
    if requested == "bf16" and "BF16" not in capabilities:
        raise EngineMismatchError(where, "--precision bf16", "a CPU with BF16 instructions", "use --precision f32")
    if requested == "auto":
        slow = "GenuineIntel" in cpu and "amx_bf16" not in cpu
        return "bf16" if quantized and "BF16" in capabilities and not slow else "f32"
    return requested


def cpu_description() -> str:
    """Linux's own words on the first CPU, vendor and flags among them; "" elsewhere."""
    try:
        return CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return ""


def open_networks(bundle: Bundle, options: SessionOptions) -> list[Network]:
    """Raises EngineMismatchError where this OpenVINO refuses a model, BundleError for a member of another kind."""
    return open_each(open_network, bundle, options)


def open_network(bundle: Bundle, entry: NetworkEntry, options: SessionOptions) -> OpenVINONetwork:
    """Raises EngineMismatchError where this OpenVINO refuses the model, BundleError for a member of another kind."""
    import openvino

    if options.device not in (None, "cpu"):
        raise UsageError("--device", repr(options.device), "cpu for an engine of target cpu")
    core = openvino.Core()
    quantized = bundle.manifest.bits != "fp"
    # What the user asks for here, else what the engine was compiled with, else what suits this CPU.
    precision = bundle.manifest.precision if options.precision == "auto" else options.precision
    capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": resolve_precision(
            precision, quantized, capabilities, bundle.path, cpu_description()
        ),
        **integer_settings(quantized),
    }
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.profile:
        settings["PERF_COUNT"] = True
    xml, weights = _read_ir(bundle, entry)
    tensor = openvino.Tensor(weights.array, shared_memory=True)
    try:
        compiled = core.compile_model(core.read_model(xml.decode(), tensor), _DEVICE, settings)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        raise EngineMismatchError(
            f"{bundle.path}:{entry.member}",
            f"OpenVINO {openvino.__version__} refuses it ({str(error).strip().splitlines()[-1]})",
            f"built with {bundle.manifest.library_version}",
            "compile the model again: intsr compile MODEL --target cpu",
        ) from error
    # Most weights are in there now in layouts of its own.
    weights.drop_pages()
    _check_shapes(compiled, entry, bundle.path)
    in_float = quantized and not integers_are_exact()
    return OpenVINONetwork(entry, compiled, bundle.path, weights, (IN_FLOAT_NOTE,) if in_float else ())


@dataclass(frozen=True, slots=True)
class _Weights:
    """array: (bytes,) uint8, aligned. member: what it lies in, None for memory of its own."""

    array: Array
    member: LastingMember | None = None

    def drop_pages(self) -> None:
        if self.member is not None:
            self.member.drop_pages()


def _read_ir(bundle: Bundle, entry: NetworkEntry) -> tuple[bytes, _Weights]:
    """The xml, and the weights as they lie in the file; older bundles do not align them: those are copied."""
    packed = entry.weights_member or entry.member
    member = bundle.lasting_member(packed)
    xml, view = split_member(member.view, f"{bundle.path}:{packed}")
    weights = _Weights(np.frombuffer(view, np.uint8), member)
    if weights.array.ctypes.data % MEMBER_ALIGNMENT_BYTES:
        aligned = np.empty(len(view) + MEMBER_ALIGNMENT_BYTES, np.uint8)
        start = -aligned.ctypes.data % MEMBER_ALIGNMENT_BYTES
        weights = _Weights(aligned[start : start + len(view)])
        weights.array[:] = np.frombuffer(view, np.uint8)
    if entry.weights_member:
        with bundle.member(entry.member) as view:
            xml = unpack_xml(view, f"{bundle.path}:{entry.member}")
    return xml, weights


def _check_shapes(compiled: Any, entry: NetworkEntry, where: object) -> None:
    for info, ports in ((entry.input, compiled.inputs), (entry.output, compiled.outputs)):
        got = [tuple(port.partial_shape.get_min_shape()) for port in ports]
        if got != [info.shape]:
            raise EngineMismatchError(where, f"{entry.name} has {got}", f"[{info.shape}] by the manifest")
