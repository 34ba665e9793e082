"""The `cpu` target: an OpenVINO IR, read from memory and compiled for this CPU when it is opened."""

from __future__ import annotations

import os
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from intsr.arrays import Array
from intsr.bundle import MEMBER_ALIGNMENT_BYTES, LastingMember
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError
from intsr.interrupts import wait_through
from intsr.memory import drop_mapped_pages
from intsr.runtime.backends.codes import are_packed, unpacked
from intsr.runtime.backends.compatibility import cpu_description
from intsr.runtime.backends.openvino.blobs import MAX_COPIED_BYTES, keep, open_blob, used, with_places_in_file
from intsr.runtime.backends.openvino.int8 import IN_FLOAT_NOTE, largest_exact_code, make_floats_of_wide_codes
from intsr.runtime.backends.packed import IR_MAGIC, split_member, unpack_xml
from intsr.runtime.backends.protocol import (
    Backend,
    EntryNetwork,
    LayerTime,
    SessionOptions,
    checked_input,
    closed_error,
    ran_out_of_memory,
)
from intsr.runtime.backends.video import VideoBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intsr.bundle import Bundle
    from intsr.manifest import NetworkEntry

_DEVICE = "CPU"
# In front of a blob: how many bytes of floats were made of integer weights.
_FLOATS = struct.Struct("<Q")


class OpenVINONetwork(EntryNetwork):
    """A compiled model with one request. precision: what OpenVINO computes the float parts in. floats_bytes: of
    integer weights that are floats on this CPU.
    """

    def __init__(
        self,
        entry: NetworkEntry,
        compiled: Any,
        where: object = "engine",
        weights: object = None,
        floats_bytes: int = 0,
    ) -> None:
        # Some are read where they lie in the file: its mapping lives as long as the compiled model.
        self._weights = weights
        self.entry, self.floats_bytes = entry, floats_bytes
        self._where = f"{where}:{entry.member}"
        # get_type_name: NumPy has no bfloat16, and OpenVINO's to_dtype() says float16 for it.
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        # For who runs a network by itself: results of two threads would lie in the same tensor.
        self._lock = threading.Lock()

    def run_all(self, tensors: Sequence[Array]) -> list[Array]:
        """Do as `ManyTensorNetwork`."""
        checked = [checked_input(x, info) for info, x in zip(self.entry.inputs, tensors, strict=True)]
        with self._lock:
            if self._request is None:
                raise closed_error(self._where)
            try:
                self._infer(checked)
            except RuntimeError as error:
                text = str(error).strip().splitlines()[-1]
                if ran_out_of_memory(error):
                    raise OutOfMemoryError(self._where, f"OpenVINO is out of memory ({text})") from error
                raise EngineMismatchError(self._where, f"OpenVINO cannot run it ({text})") from error
            # Copies: the next call writes into the same tensors.
            return [
                np.array(self._request.get_output_tensor(place).data, dtype=info.dtype, copy=True)
                for place, info in enumerate(self.entry.outputs)
            ]

    def _infer(self, tensors: Sequence[Array]) -> None:
        """In a thread of OpenVINO's own. What it keeps for a caller's thread that it has run in is freed when that
        one ends; where the model is closed meanwhile, as in a pool of threads, the process ends in a crash.
        """
        try:
            self._request.start_async(dict(enumerate(tensors)), share_inputs=True)
        finally:
            # After Ctrl-C too: they must not go before.
            self._request.wait()

    def layer_times_ms(self) -> list[LayerTime]:
        """Return the layers of the last `run` in execution order, where it was opened with `profile`."""
        executed = [info for info in self._request.profiling_info if info.status == info.Status.EXECUTED]
        return [
            LayerTime(info.node_name, info.node_type, info.exec_type, info.real_time.total_seconds() * 1e3)
            for info in executed
        ]

    def close(self) -> None:
        with self._lock:
            self._request = self._compiled = self._weights = None


def resolve_precision(requested: str, quantized: bool, capabilities: list[str], where: object, cpu: str = "") -> str:
    """Return `f32` or `bf16` for what is not integer. cpu: of `cpu_description`. Raises EngineMismatchError.

    `auto` takes bf16 for a quantized engine where the CPU has it and is faster with it: attention and other float
    parts then cost half. Without AMX, Intel's bf16 products are slower than its float32 ones:
    docs/measure/performance.md. A full-precision engine stays in float32, so that its name is true.
    """
    if requested == "bf16" and "BF16" not in capabilities:
        raise EngineMismatchError(where, "--precision bf16", "a CPU with BF16 instructions", "use --precision f32")
    if requested == "auto":
        slow = "GenuineIntel" in cpu and "amx_bf16" not in cpu
        return "bf16" if quantized and "BF16" in capabilities and not slow else "f32"
    return requested


class OpenVINOBackend(Backend):
    networks: tuple[OpenVINONetwork, ...]

    def layer_times_ms(self) -> dict[str, list[LayerTime]]:
        return {name: network.layer_times_ms() for name, network in zip(self.names, self.networks, strict=True)}


def load_library() -> None:
    """Import OpenVINO and compile something tiny with it."""
    largest_exact_code()


def open_backend(bundle: Bundle, options: SessionOptions) -> Backend:
    """Open all networks, side by side: making kernels takes one thread each. Raises what `open_network` raises."""
    # Once, and not in each thread.
    largest_exact_code()
    entries, sizes = bundle.manifest.networks, bundle.sizes_bytes()
    # The largest first, with a core to itself.
    order = sorted(entries, key=lambda entry: -sizes[entry.weights_member or entry.member])
    futures: dict[NetworkEntry, Future[OpenVINONetwork]] = {}
    with ThreadPoolExecutor(min(len(entries), os.cpu_count() or 1)) as pool:
        try:
            futures.update((entry, pool.submit(open_network, bundle, entry, options)) for entry in order)
        finally:
            # After Ctrl-C too: OpenVINO crashes where the process ends under it.
            wait_through(partial(wait, futures.values()))
    opening = [futures[entry] for entry in entries]
    with ExitStack() as opened:
        for future in opening:
            if future.exception() is None:
                opened.callback(future.result().close)
        networks = [future.result() for future in opening]
        opened.pop_all()
    precision = networks[0].precision
    backend: Backend
    if bundle.manifest.chunk is not None:
        backend = VideoBackend(networks, bundle.manifest.chunk, precision)
    else:
        backend = OpenVINOBackend(networks, precision, tuple(entry.name for entry in entries))
    if any(network.floats_bytes for network in networks):
        backend.notes = (IN_FLOAT_NOTE,)
    return backend


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
    hint = resolve_precision(precision, quantized, capabilities, bundle.path, cpu_description())
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
        # Other cores are for other processes: pinned, each of them would take the first ones.
        settings["ENABLE_CPU_PINNING"] = False
    if options.profile:
        settings["PERF_COUNT"] = True
    # Of a network that was kept, weights are all that is read: numbers. Who opens the engine checks them in the end.
    member = bundle.lasting_member(entry.weights_member or entry.member, unchecked=True)
    try:
        compiled, held, floats_bytes = _compiled(core, bundle, entry, member, settings=settings, cache=options.cache)
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
    member.drop_pages()
    for infos, ports in ((entry.inputs, compiled.inputs), (entry.outputs, compiled.outputs)):
        got, expected = [tuple(port.partial_shape.get_min_shape()) for port in ports], [info.shape for info in infos]
        if got != expected:
            raise EngineMismatchError(bundle.path, f"{entry.name} has {got}", f"{expected} by the manifest")
    return OpenVINONetwork(entry, compiled, bundle.path, held, floats_bytes)


def _compiled(
    core: Any, bundle: Bundle, entry: NetworkEntry, member: LastingMember, *, settings: dict[str, Any], cache: bool
) -> tuple[Any, object, int]:
    """Return the compiled model, from the cache where it is there, what has to live as long, and how many bytes of
    floats were made of its integer weights.
    """
    import openvino

    start = _place_of_weights(member, bundle.path)
    copied_bytes = 0 if start is not None else len(member.view)
    blob = None
    if cache and _is_text(bundle.path) and copied_bytes <= MAX_COPIED_BYTES:
        if start is not None:
            settings = {**settings, "CACHE_MODE": "OPTIMIZE_SIZE"}
        blob = open_blob(bundle, entry, start, settings, openvino.__version__)
    if blob is not None and (kept := bytearray(blob.read())):
        (floats_bytes,) = _FLOATS.unpack_from(kept)
        content = np.frombuffer(kept, np.uint8, offset=_FLOATS.size)
        places = {} if start is None else {"WEIGHTS_PATH": str(bundle.path.absolute())}
        try:
            tensor = openvino.Tensor(content, shared_memory=True)
            compiled = core.import_model(tensor, _DEVICE, {**settings, **places})
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            blob.warn(f"OpenVINO does not take it ({str(error).strip().splitlines()[-1]})")
        else:
            # OpenVINO has opened the file by its name: another one may have come in its place.
            if start is None or bundle.is_unchanged():
                used(blob.path)
                drop_mapped_pages(bundle.path)
                return compiled, content, floats_bytes
    bundle.check()
    xml, weights = _read_ir(bundle, entry, member, start)
    model = core.read_model(xml.decode(), openvino.Tensor(weights, shared_memory=True))
    floats_bytes = make_floats_of_wide_codes(model)
    compiled = core.compile_model(model, _DEVICE, settings)
    # Floats made of integers lie in no file: a blob has a copy.
    if blob is not None and copied_bytes + floats_bytes <= MAX_COPIED_BYTES:
        keep(blob, _FLOATS.pack(floats_bytes) + compiled.export_model().getvalue())
    return compiled, weights, floats_bytes


def _is_text(path: Path) -> bool:
    """Tell whether OpenVINO can be given the path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _place_of_weights(member: LastingMember, path: Path) -> int | None:
    """Return where in the file the weights begin; None where they are copied, packed or not aligned."""
    if not member.in_place or are_packed(member.view):
        return None
    _, view = split_member(IR_MAGIC, member.view, path)
    start = member.start + len(member.view) - len(view)
    return None if start % MEMBER_ALIGNMENT_BYTES else start


def _read_ir(bundle: Bundle, entry: NetworkEntry, member: LastingMember, start: int | None) -> tuple[bytes, Array]:
    """Return the xml and the weights, (bytes,) uint8. start: where these lie in the file, which is then all of it up
    to their end, with the xml's offsets counting from its first byte.

    Weights are copied where their codes are packed, or where another program has put the bundle together and they are
    not aligned.
    """
    where = f"{bundle.path}:{entry.weights_member or entry.member}"
    xml, view = split_member(IR_MAGIC, unpacked(member.view, where), where)
    if entry.weights_member:
        with bundle.member(entry.member) as own:
            xml = unpack_xml(own, f"{bundle.path}:{entry.member}")
    if start is not None:
        return with_places_in_file(xml, start), np.frombuffer(member.whole, np.uint8)
    weights = np.frombuffer(view, np.uint8)
    if weights.ctypes.data % MEMBER_ALIGNMENT_BYTES:
        spacious = np.empty(len(view) + MEMBER_ALIGNMENT_BYTES, np.uint8)
        first = -spacious.ctypes.data % MEMBER_ALIGNMENT_BYTES
        spacious[first : first + len(view)] = weights
        weights = spacious[first : first + len(view)]
    return xml, weights
