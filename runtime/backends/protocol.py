"""What a network is to the runtime, and the targets that this version runs."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np

from intsr.arrays import Array
from intsr.cuda.driver import CUDA_BACKENDS
from intsr.errors import UsageError
from intsr.types import NetworkEntry, TensorInfo

if TYPE_CHECKING:
    from intsr.bundle import Bundle
    from intsr.runtime.tiles.blend import FinishedBand, TileProgress
    from intsr.runtime.tiles.enlarge import Enlarger
    from intsr.runtime.tiles.grid import TilePlan
    from intsr.runtime.tiles.stage_clock import StageClock

PRECISIONS = ("auto", "f32", "bf16")
_NO_MEMORY = re.compile(
    "alloc|out of memory|not enough memory|failed to map segment|resource temporarily unavailable", re.IGNORECASE
)
_SHORT_NAMES = {"float32": "f32", "float16": "f16"}

# target -> "module:function", function(bundle, options) -> the bundle's networks
BACKENDS: dict[str, str] = {
    "cpu": "intsr.runtime.backends.openvino.backend:open_networks",
    "onnxruntime": "intsr.runtime.backends.onnxruntime:open_networks",
    "tensorrt": "intsr.runtime.backends.tensorrt.backend:open_networks",
    "tensorrt-rtx": "intsr.runtime.backends.tensorrt.backend:open_networks",
}


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How networks run. threads: None for the library's own choice; a GPU has none. precision: of what is not
    integer. device: None for the target's own. cuda_backend: who talks to CUDA, of `CUDA_BACKENDS`. profile: measure
    the time of each layer (`layer_times_ms`), which costs some itself. tile_px: None for the engine's default. copy:
    the file is read into memory, whatever its size.
    """

    threads: int | None = None
    precision: str = "auto"
    device: str | None = None
    cuda_backend: str = "cuda-python"
    profile: bool = False
    tile_px: int | None = None
    copy: bool = False

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
    """Of one run. kind: the layer's type, "" where the library does not say. implementation: what ran it."""

    name: str
    kind: str
    implementation: str
    ms: float


class Network(Protocol):
    """One network with a static shape, ready to run.

    Where it knows, it also has `activation_bytes`: what running it takes beside the weights, an int that rather errs
    high; see `activation_bytes_from_network`.
    """

    @property
    def input(self) -> TensorInfo: ...

    @property
    def output(self) -> TensorInfo: ...

    def run(self, x: Array) -> Array:
        """x: `input.shape`, any float dtype -> `output.shape`, `output.dtype`; the caller owns the result."""
        ...

    def close(self) -> None: ...


class TilePipeline(Protocol):
    """All networks of an engine over many tiles, copies beside kernels: `network.pipeline` where there is one."""

    def run_batches(self, batches: Iterable[Array], record: Callable[[str, float], None]) -> Generator[Array]:
        """Encoder inputs -> decoder outputs, in order. record: told milliseconds by network and of `transfers`."""
        ...


class PicturePipeline(Protocol):
    """Whole pictures that never leave the device: `network.picture_pipeline` where there is one."""

    def bands(
        self,
        enlarger: Enlarger,
        plan: TilePlan,
        color_fix: str,
        clock: StageClock,
        tile_progress: TileProgress | None = None,
    ) -> Generator[FinishedBand] | None:
        """The finished output, from top to bottom; None where this picture has to go through host memory."""
        ...


def checked_input(x: Array, info: TensorInfo) -> Array:
    """`x` contiguous and in the dtype that the network takes. Raises ValueError for another shape."""
    if x.shape != info.shape:
        raise ValueError(f"input {info.name} has shape {x.shape}, expected {info.shape}")
    return np.ascontiguousarray(x, dtype=info.dtype)


def closed_error(where: object) -> UsageError:
    """To be raised by what is used after its `close`."""
    return UsageError(where, "the engine is closed", fix="open it again")


def ran_out_of_memory(error: Exception) -> bool:
    """Whether that is what an exception of Python's or of a library means. Some have words for it alone, and threads
    that cannot be started for want of it are temporarily unavailable.
    """
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or no_memory or bool(_NO_MEMORY.search(str(error)))


def precision_from_network(network: Network) -> str:
    """`f32`, `f16` or `bf16`: what the backend settled for the parts that are not integer, or the output's dtype."""
    return str(getattr(network, "precision", _SHORT_NAMES.get(network.output.dtype, network.output.dtype)))


def notes_from_networks(networks: Iterable[Network]) -> tuple[str, ...]:
    """What the user should know of how they run here, each once."""
    return tuple(dict.fromkeys(note for network in networks for note in getattr(network, "notes", ())))


def activation_bytes_from_network(network: Network) -> int | None:
    """What running it takes beside the weights, in bytes; None where its library does not tell."""
    value: int | None = getattr(network, "activation_bytes", None)
    return value


def open_networks(bundle: Bundle, options: SessionOptions) -> tuple[Network, Network, Network]:
    """Hand the members to their target's library. Check the bundle first (`compatibility.check_runs_here`), and open
    it at the tile size that is wanted.
    """
    module, _, function = BACKENDS[bundle.manifest.target].partition(":")
    encoder, unet, decoder = getattr(import_module(module), function)(bundle, options)
    return encoder, unet, decoder


def open_each(
    open_network: Callable[[Bundle, NetworkEntry, SessionOptions], Network], bundle: Bundle, options: SessionOptions
) -> list[Network]:
    """One by one; those that are open are closed again where a later one fails."""
    with ExitStack() as opened:
        networks = []
        for entry in bundle.manifest.networks:
            networks.append(open_network(bundle, entry, options))
            opened.callback(networks[-1].close)
        opened.pop_all()
    return networks
