"""What a backend owes the runtime: an engine's networks, and what their library can do beside running them."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from intsr.arrays import Array
from intsr.cuda.driver import CUDA_BACKENDS
from intsr.errors import UsageError
from intsr.manifest import NetworkEntry
from intsr.memory import resident_bytes
from intsr.targets import target_from_name
from intsr.types import NETWORKS, TensorInfo

if TYPE_CHECKING:
    from intsr.bundle import Bundle
    from intsr.manifest import ChunkEntry
    from intsr.runtime.tiles.blend import FinishedBand, TileProgress
    from intsr.runtime.tiles.enlarge import Enlarger
    from intsr.runtime.tiles.grid import TilePlan
    from intsr.runtime.tiles.stage_clock import StageClock

PRECISIONS = ("auto", "f32", "bf16")
_NO_MEMORY = re.compile(
    "alloc|out of memory|not enough memory|failed to map segment|resource temporarily unavailable", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How networks run; `open_engine` says what each option means. Raises UsageError."""

    threads: int | None = None
    precision: str = "auto"
    device: str | None = None
    cuda_backend: str = "cuda-python"
    profile: bool = False
    tile_px: int | None = None
    copy: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads", str(self.threads), "1 or more")
        if self.tile_px is not None and self.tile_px < 1:
            raise UsageError("--tile", f"{self.tile_px} pixels", "1 or more")
        if self.precision not in PRECISIONS:
            raise UsageError("--precision", repr(self.precision), f"one of {', '.join(PRECISIONS)}")
        if self.cuda_backend not in CUDA_BACKENDS:
            raise UsageError("--cuda-backend", repr(self.cuda_backend), f"one of {', '.join(CUDA_BACKENDS)}")


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer of one run. kind, implementation: its type and what ran it, "" where the library does not say."""

    name: str
    kind: str
    implementation: str
    ms: float


class Network(Protocol):
    """One network of one input and one output with static shapes, ready to run."""

    @property
    def input(self) -> TensorInfo: ...

    @property
    def output(self) -> TensorInfo: ...

    def run(self, x: Array) -> Array:
        """Run it: `input.shape`, any float dtype -> `output.shape`, `output.dtype`; the caller owns the result."""
        ...

    def close(self) -> None: ...


class ManyTensorNetwork(Protocol):
    """One network of any number of inputs and outputs with static shapes, ready to run."""

    @property
    def entry(self) -> NetworkEntry: ...

    def run_all(self, tensors: Sequence[Array]) -> list[Array]:
        """Run it: a tensor for each of `entry.inputs`, any float dtype -> one for each of `entry.outputs`, in the
        dtype that it has there; the caller owns the results. What a chunk leaves to the next may be anything that the
        networks of the same backend take.
        """
        ...


class OfEntry:
    """Whatever has an entry's input and output, where it has one of each."""

    entry: NetworkEntry

    @property
    def input(self) -> TensorInfo:
        return self.entry.input

    @property
    def output(self) -> TensorInfo:
        return self.entry.output


class EntryNetwork(OfEntry):
    """The base of a `ManyTensorNetwork` that is a `Network` as well, where it has one input and one output."""

    def run(self, x: Array) -> Array:
        """As of `Network`."""
        return self.run_all([x])[0]

    def run_all(self, tensors: Sequence[Array]) -> list[Array]:
        """As of `ManyTensorNetwork`."""
        raise NotImplementedError


class TilePipeline(Protocol):
    """All networks of an engine over many tiles, copies beside kernels."""

    def run_batches(self, batches: Iterable[Array], record: Callable[[str, float], None]) -> Generator[Array]:
        """Yield the outputs of the last network for inputs of the first, in order. record: as of `Backend.run`, and
        told those of `transfers`.
        """
        ...


class PicturePipeline(Protocol):
    """Whole pictures that never leave the device."""

    def bands(
        self,
        enlarger: Enlarger,
        plan: TilePlan,
        color_fix: str,
        clock: StageClock,
        tile_progress: TileProgress | None = None,
    ) -> Generator[FinishedBand] | None:
        """Return the finished output, from top to bottom; None where this picture has to go through host memory."""
        ...


class Backend:
    """The open networks of one engine, run one after the other. What a library cannot tell or do is None here."""

    # The GPU that the networks run on.
    device: str | None = None
    # What the user should know of how the engine runs here, each once.
    notes: tuple[str, ...] = ()
    tile_pipeline: TilePipeline | None = None
    picture_pipeline: PicturePipeline | None = None
    # Of a video engine (`VideoBackend`).
    chunk: ChunkEntry | None = None
    # By which this process grew in its first run of all networks on the host; None before that.
    activation_bytes: int | None = None

    def __init__(
        self, networks: Sequence[Network], precision: str | None = None, names: tuple[str, ...] = NETWORKS
    ) -> None:
        """networks: in the order in which they run. precision: `f32`, `f16` or `bf16`, of what is not integer; None
        for the dtype of the first network's output. names: the networks'.
        """
        self.networks, self.names = tuple(networks), names
        dtype = self.networks[0].output.dtype
        self.precision = precision or {"float32": "f32", "float16": "f16"}.get(dtype, dtype)

    def network(self, name: str) -> Network:
        """Return the network of that name, for example `unet`."""
        return self.networks[self.names.index(name)]

    def run(self, x: Array, record: Callable[[str, float], None] = lambda name, ms: None) -> Array:
        """Run all networks on one input of the first. record: told each one's name and milliseconds."""
        before = resident_bytes() if self.activation_bytes is None else 0
        for name, network in zip(self.names, self.networks, strict=True):
            start = time.perf_counter()
            x = network.run(x)
            record(name, (time.perf_counter() - start) * 1e3)
        if self.activation_bytes is None:
            # Libraries keep from their first run on what they need for their activations.
            self.activation_bytes = max(resident_bytes() - before, 0)
        return x

    def layer_times_ms(self) -> dict[str, list[LayerTime]] | None:
        """Return the layers of each network's last run in execution order, where it was opened with `profile`."""
        return None

    def uses_graphs(self) -> bool | None:
        """Tell whether the networks run as CUDA graphs."""
        return None

    def device_bytes(self) -> int | None:
        """Return the memory of the GPU that was taken since the engine was opened."""
        return None

    def close(self) -> None:
        """Free the networks; a second time does nothing."""
        for network in self.networks:
            network.close()


N = TypeVar("N", bound=Network)


def backend_module(target: str) -> Any:
    """Import a target's backend. Its `open_backend(bundle, options)` returns a `Backend` of a bundle that was checked
    (`compatibility.check_runs_here`); `load_library()` imports a library of the CPU and has it run something tiny: a
    GPU's is loaded with its device, whose memory is counted apart.
    """
    return import_module(target_from_name(target).backend)


def open_each(
    open_network: Callable[[Bundle, NetworkEntry, SessionOptions], N], bundle: Bundle, options: SessionOptions
) -> list[N]:
    """Open one network after the other; those that are open are closed again where a later one fails."""
    bundle.check()
    with ExitStack() as opened:
        networks: list[N] = []
        for entry in bundle.manifest.networks:
            networks.append(open_network(bundle, entry, options))
            opened.callback(networks[-1].close)
        opened.pop_all()
    return networks


def checked_input(x: Array, info: TensorInfo) -> Array:
    """Return `x` contiguous and in the dtype that the network takes. Raises ValueError for another shape."""
    if x.shape != info.shape:
        raise ValueError(f"input {info.name} has shape {x.shape}, expected {info.shape}")
    return np.ascontiguousarray(x, dtype=info.dtype)


def closed_error(where: object) -> UsageError:
    """Return the error that is raised by what is used after its `close`."""
    return UsageError(where, "the engine is closed", fix="open it again")


def ran_out_of_memory(error: Exception) -> bool:
    """Tell whether that is what an exception of Python's or of a library means.

    Some have words for it alone, and threads that cannot be started for want of memory are temporarily unavailable.
    """
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or no_memory or bool(_NO_MEMORY.search(str(error)))
