"""What a network is to the runtime, and the targets that this version runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from intsr.errors import UsageError
from intsr.types import NetworkEntry, TensorInfo

if TYPE_CHECKING:
    from intsr.bundle import Bundle

Array = NDArray[Any]
PRECISIONS = ("auto", "f32", "bf16")
_SHORT_NAMES = {"float32": "f32", "float16": "f16"}

# target -> "module:function", function(bundle, entry, options) -> Network
BACKENDS: dict[str, str] = {
    "cpu": "intsr.runtime.openvino_backend:open_network",
    "onnxruntime": "intsr.runtime.onnxruntime_backend:open_network",
}


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How networks run. threads: None for the library's own choice. precision: of what is not integer. device: None
    for the target's own.
    """

    threads: int | None = None
    precision: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads", str(self.threads), "1 or more")
        if self.precision not in PRECISIONS:
            raise UsageError("--precision", repr(self.precision), f"one of {', '.join(PRECISIONS)}")


class Network(Protocol):
    """One network with a static shape, ready to run."""

    @property
    def input(self) -> TensorInfo: ...

    @property
    def output(self) -> TensorInfo: ...

    def run(self, x: Array) -> Array:
        """x: `input.shape`, any float dtype -> `output.shape`, `output.dtype`; the caller owns the result."""
        ...

    def close(self) -> None: ...


def checked_input(x: Array, info: TensorInfo) -> Array:
    """`x` contiguous and in the dtype that the network takes. Raises ValueError for another shape."""
    if x.shape != info.shape:
        raise ValueError(f"input {info.name} has shape {x.shape}, expected {info.shape}")
    return np.ascontiguousarray(x, dtype=info.dtype)


def precision_from_network(network: Network) -> str:
    """`f32`, `f16` or `bf16`: what the backend settled for the parts that are not integer, or the output's dtype."""
    return str(getattr(network, "precision", _SHORT_NAMES.get(network.output.dtype, network.output.dtype)))


def open_network(bundle: Bundle, entry: NetworkEntry, options: SessionOptions) -> Network:
    """Hand one member to its target's library. Check the bundle first (`compatibility.check_runs_here`)."""
    module, _, function = BACKENDS[bundle.manifest.target].partition(":")
    network: Network = getattr(import_module(module), function)(bundle, entry, options)
    return network
