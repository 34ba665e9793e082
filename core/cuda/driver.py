"""What the GPU runtime asks of CUDA, and who answers: cuda-python by default, pycuda where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from intsr.arrays import Array
from intsr.errors import EngineMismatchError, UsageError
from intsr.runtime.backends.protocol import CUDA_BACKENDS

_NO_GPU_FIX = "run it on a machine with an NVIDIA GPU, or make an engine that runs here: intsr compile MODEL"


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU. capability: compute capability, for example (8, 9). driver_version: the CUDA version of the driver.
    multiprocessors: how many blocks of threads run at once, about.
    """

    index: int
    name: str
    capability: tuple[int, int]
    total_bytes: int
    driver_version: str
    multiprocessors: int

    def __str__(self) -> str:
        return f"cuda:{self.index} {self.name} (sm{self.capability[0]}{self.capability[1]})"


class Cuda(Protocol):
    """One device's memory, streams, events, graphs and kernels, the latter four opaque to the caller.

    graphs: whether `begin_capture` and what follows it can be called. Every method raises OutOfMemoryError or
    EngineMismatchError with CUDA's own reason.
    """

    graphs: bool
    device: CudaDevice

    def make_current(self) -> None:
        """For the calling thread; before anything else there."""
        ...

    def alloc(self, size_bytes: int) -> int:
        """Device memory: its address."""
        ...

    def free(self, address: int) -> None: ...

    def alloc_pinned(self, size_bytes: int) -> Array:
        """Page-locked host memory, (size_bytes,) uint8: copies from and to it run beside kernels."""
        ...

    def free_pinned(self, memory: Array) -> None: ...

    def upload(self, address: int, source: Array, stream: Any) -> None:
        """source: contiguous; unchanged until the stream is through with it."""
        ...

    def download(self, target: Array, address: int, stream: Any) -> None: ...

    def clear(self, address: int, size_bytes: int, stream: Any) -> None:
        """Zeros."""
        ...

    def create_stream(self) -> Any: ...

    def destroy_stream(self, stream: Any) -> None: ...

    def stream_address(self, stream: Any) -> int:
        """What TensorRT and `__cuda_array_interface__` call the stream."""
        ...

    def synchronize(self, stream: Any) -> None: ...

    def create_event(self) -> Any: ...

    def destroy_event(self, event: Any) -> None: ...

    def record(self, event: Any, stream: Any) -> None: ...

    def wait(self, stream: Any, event: Any) -> None:
        """What is put into the stream from here on starts after the event."""
        ...

    def synchronize_event(self, event: Any) -> None: ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Between two events that are over."""
        ...

    def wait_for_foreign(self, stream: Any, foreign: int) -> None:
        """`wait` for all that another library put into its stream so far; foreign: that stream's address."""
        ...

    def synchronize_device(self) -> None:
        """Wait for everything on the device, whoever put it there."""
        ...

    def begin_capture(self, stream: Any) -> None: ...

    def end_capture(self, stream: Any) -> Any:
        """What was put into the stream since `begin_capture`, as a graph that can be launched."""
        ...

    def abandon_capture(self, stream: Any) -> None:
        """End a capture that failed; never raises."""
        ...

    def launch(self, graph: Any, stream: Any) -> None: ...

    def destroy_graph(self, graph: Any) -> None: ...

    def load_module(self, image: bytes) -> Any:
        """Kernels that are compiled (a fatbin), until `unload_module`."""
        ...

    def unload_module(self, module: Any) -> None: ...

    def kernel(self, module: Any, name: str, params_bytes: int) -> Any:
        """By name. params_bytes: of the struct that is its one parameter."""
        ...

    def launch_kernel(
        self, kernel: Any, grid: tuple[int, int, int], block: int, shared_bytes: int, params: bytes, stream: Any
    ) -> None:
        """grid: blocks along x, y, z. block: threads, along x. shared_bytes: at most 48 KiB. params: the struct."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def close(self) -> None: ...


def open_cuda(backend: str, requested: str | None, where: object, extra: str) -> Cuda:
    """The device that was asked for, through `backend`, one of `CUDA_BACKENDS`.

    extra: of this package, brings cuda-python for the engine's target. Raises EngineMismatchError where the library
    or the driver is missing, or no such device is there; UsageError for another backend.
    """
    if backend not in CUDA_BACKENDS:
        raise UsageError("--cuda-backend", repr(backend), f"one of {', '.join(CUDA_BACKENDS)}")
    module = import_module(CUDA_BACKENDS[backend])
    library: Any = import_library(module.LIBRARY, where, "pycuda" if backend == "pycuda" else extra)
    devices: list[CudaDevice] = module.list_devices(library, where)
    opened: Cuda = module.open_device(library, pick_device(devices, requested, where), where)
    return opened


def import_library(name: str, where: object, extra: str) -> Any:
    """Raises EngineMismatchError naming the extra that brings it, also where its own libraries are missing."""
    package = name.partition(".")[0]
    fix = f'install it with: pip install "intsr[{extra}]"'
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise EngineMismatchError(where, f"{package} is not installed", fix=fix) from error
        # pycuda, for one, is linked to the driver's library.
        raise EngineMismatchError(where, f"{package} cannot be loaded ({error})", "its libraries", fix) from error


def no_driver(where: object, reason: str) -> EngineMismatchError:
    return EngineMismatchError(where, f"no usable NVIDIA driver ({reason})", "an NVIDIA GPU", _NO_GPU_FIX)


def pick_device(devices: Sequence[CudaDevice], requested: str | None, where: object) -> CudaDevice:
    """By `cuda:INDEX`, `cuda` or None for the first, or a part of its name. Raises EngineMismatchError."""
    if not devices:
        raise no_driver(where, "it sees no GPU")
    tests: list[Callable[[CudaDevice], bool]] = [
        lambda device: requested in (None, "cuda", f"cuda:{device.index}"),
        lambda device: requested is not None and requested.lower() in device.name.lower(),
    ]
    for fits in tests:
        for device in devices:
            if fits(device):
                return device
    there = ", ".join(map(str, devices))
    raise EngineMismatchError(
        "--device", f"no GPU is {requested!r}", f"one of {there}", "for example --device cuda:0"
    )
