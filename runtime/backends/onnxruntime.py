"""The `onnxruntime` target: an ONNX graph on ONNX Runtime; the reference and fallback on the CPU, or on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError
from intsr.optional import require
from intsr.runtime.backends.codes import unpacked
from intsr.runtime.backends.packed import ONNX_MAGIC, is_packed, split_member
from intsr.runtime.backends.protocol import (
    Backend,
    EntryNetwork,
    SessionOptions,
    checked_input,
    closed_error,
    open_each,
    ran_out_of_memory,
)
from intsr.runtime.backends.video import VideoBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intsr.bundle import Bundle
    from intsr.manifest import NetworkEntry

# What a packed graph calls the file with its weights.
WEIGHTS_NAME = "weights"
_ERRORS_ONLY = 3
_CPU = "CPUExecutionProvider"
# `--device` -> ONNX Runtime's execution providers; a node goes to the first that takes it.
_PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
    "tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", _CPU),
}
_INSTALL = 'pip uninstall onnxruntime, then pip install "intsr[onnxruntime-gpu]"'


class ONNXRuntimeNetwork(EntryNetwork):
    """One session, all float parts in the graph's own types."""

    def __init__(self, entry: NetworkEntry, session: Any, where: object = "engine") -> None:
        self.entry = entry
        self._session, self._where = session, where

    def run_all(self, tensors: Sequence[Array]) -> list[Array]:
        """Do as `ManyTensorNetwork`."""
        if self._session is None:
            raise closed_error(self._where)
        inputs, outputs = self.entry.inputs, self.entry.outputs
        feeds = {info.name: checked_input(x, info) for info, x in zip(inputs, tensors, strict=True)}
        try:
            results = self._session.run([info.name for info in outputs], feeds)
            return [np.asarray(y, dtype=info.dtype) for info, y in zip(outputs, results, strict=True)]
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            text = str(error).strip().splitlines()[-1]
            raise OutOfMemoryError(self._where, f"ONNX Runtime is out of memory ({text})") from error

    def close(self) -> None:
        self._session = None


def load_library() -> None:
    """Import ONNX Runtime."""
    require("onnxruntime", "an engine of target onnxruntime")


def open_backend(bundle: Bundle, options: SessionOptions) -> Backend:
    """Open all networks. Raises what `open_network` raises."""
    networks = open_each(open_network, bundle, options)
    chunk, names = bundle.manifest.chunk, tuple(entry.name for entry in bundle.manifest.networks)
    backend = Backend(networks, names=names) if chunk is None else VideoBackend(networks, chunk)
    if options.device not in (None, "cpu"):
        backend.device = f"{options.device} by ONNX Runtime"
    return backend


def open_network(bundle: Bundle, entry: NetworkEntry, options: SessionOptions) -> ONNXRuntimeNetwork:
    """Raises MissingLibraryError, UsageError, EngineMismatchError where ONNX Runtime, or the device, refuses it."""
    onnxruntime = require("onnxruntime", "an engine of target onnxruntime")
    if options.precision == "bf16":
        raise UsageError("--precision", "bf16", "auto or f32 for an engine of target onnxruntime")
    providers = providers_from_device(onnxruntime, options.device or "cpu")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    # On CPUs without VNNI it adds products of bytes in 16 bits, which saturate, unless it is told to be exact.
    settings.add_session_config_entry("session.x64quantprecision", "1")
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = options.threads or 0
    where = f"{bundle.path}:{entry.member}"
    try:
        with bundle.member(entry.member) as view:
            session = create_session(onnxruntime, view, settings, where, providers)
    except Exception as error:  # ONNX Runtime's errors share no base class but this one.
        if isinstance(error, EngineMismatchError) or ran_out_of_memory(error):
            raise
        raise EngineMismatchError(
            where,
            f"ONNX Runtime {onnxruntime.__version__} refuses it ({str(error).strip().splitlines()[0]})",
            f"built with {bundle.manifest.library_version}",
            "compile the model again: intsr compile MODEL --target onnxruntime",
        ) from error
    for infos, ports in ((entry.inputs, session.get_inputs()), (entry.outputs, session.get_outputs())):
        got = [(port.name, tuple(port.shape)) for port in ports]
        if got != [(info.name, info.shape) for info in infos]:
            expected = ", ".join(f"{info.name} {info.shape}" for info in infos)
            raise EngineMismatchError(bundle.path, f"{entry.name} has {got}", expected)
    return ONNXRuntimeNetwork(entry, session, bundle.path)


def providers_from_device(onnxruntime: Any, device: str) -> list[tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's providers for `--device`, for example `cuda` or `cuda:1`, each with its settings.

    Raises UsageError for another device, EngineMismatchError where this ONNX Runtime has no such provider.
    """
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or (index and (kind == "cpu" or not index.isdecimal())):
        expected = f"{', '.join(_PROVIDERS)}, or with an index, as cuda:1, for an engine of target onnxruntime"
        raise UsageError("--device", repr(device), expected)
    available, wanted = onnxruntime.get_available_providers(), _PROVIDERS[kind]
    if wanted[0] not in available:
        got = f"ONNX Runtime {onnxruntime.__version__} has no {wanted[0]} here"
        raise EngineMismatchError(f"--device {device}", got, fix=_INSTALL)
    if kind != "cpu":
        # Those that pip installed beside it.
        onnxruntime.preload_dlls()
    return [(name, {} if name == _CPU else {"device_id": int(index or 0)}) for name in wanted if name in available]


def create_session(
    onnxruntime: Any,
    member: memoryview,
    settings: Any,
    where: object,
    providers: list[tuple[str, dict[str, Any]]] | None = None,
) -> Any:
    """Return an InferenceSession for a member: an ONNX model, or one that is packed with its weights.

    providers: the CPU's where None. Raises EngineMismatchError where the first of them cannot be loaded, which ONNX
    Runtime itself passes over, and ONNX Runtime's own errors.
    """
    member = unpacked(member, where)
    if is_packed(ONNX_MAGIC, member):
        graph, weights = split_member(ONNX_MAGIC, member, where)
        # ONNX Runtime copies from them while the session is made.
        settings.add_external_initializers_from_files_in_memory([WEIGHTS_NAME], [weights], [len(weights)])
    else:
        graph = bytes(member)
    wanted = providers or [(_CPU, {})]
    session = onnxruntime.InferenceSession(graph, settings, providers=wanted)
    if wanted[0][0] not in session.get_providers():
        got = f"ONNX Runtime cannot load its {wanted[0][0]}: a library of CUDA, or the driver, is missing"
        raise EngineMismatchError(where, got, "an NVIDIA GPU and its driver", _INSTALL)
    return session
