"""TensorRT's Python API for a target, what it says while it works, and its objects, each checked."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from intsr.cuda.driver import import_library
from intsr.errors import EngineMismatchError, IntsrError, OutOfMemoryError
from intsr.manifest import NetworkEntry
from intsr.targets import target_from_name

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8"}
_KEPT_MESSAGES = 20
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "cudaerror 2:", "cuda error 2 ")


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded TensorRT. trt: its Python API. logger: for its objects, kept as long as any of them. errors: the last
    ones that it reported.
    """

    trt: Any
    logger: Any
    errors: deque[str]

    def error(self, where: object, what: str) -> IntsrError:
        """Return the error of a call that answered None or False, in TensorRT's own words."""
        text = self.errors[0] if self.errors else "TensorRT gave no reason"
        everything = " ".join(self.errors).lower()
        self.errors.clear()
        if any(sign in everything for sign in _OUT_OF_MEMORY):
            fix = "close other programs on the GPU, or compile the model with a smaller --tile"
            return OutOfMemoryError(where, f"the GPU is out of memory: {what} failed ({text})", fix=fix)
        return EngineMismatchError(where, f"{what} failed ({text})", fix="compile the model again on this machine")


def load_tensorrt(target: str, where: object) -> Library:
    """Return the target's library. Raises EngineMismatchError naming the extra that brings it."""
    found = target_from_name(target)
    trt = import_library(found.module, where, found.extra)
    errors = deque[str](maxlen=_KEPT_MESSAGES)

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                errors.append(message)

    return Library(trt, Logger(), errors)


def make_runtime(library: Library, where: object) -> Any:
    """Return a deserializer that runs no code of the plan's on the host. Raises EngineMismatchError."""
    runtime = library.trt.Runtime(library.logger)
    # A plan that carries host code would run it with the user's rights. It is off by default; this is for certain.
    if runtime.engine_host_code_allowed:
        raise EngineMismatchError(where, "TensorRT would run host code out of plans", "engine_host_code_allowed off")
    return runtime


def deserialize(library: Library, runtime: Any, plan: memoryview, where: object) -> Any:
    """Return an ICudaEngine of a checked plan (`plan_header`). Raises EngineMismatchError, OutOfMemoryError."""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise library.error(where, "reading the plan")
    return engine


def create_context(library: Library, engine: Any, where: object, config: Any = None) -> Any:
    """Return an IExecutionContext that needs `give_memory`. config: an IRuntimeConfig that says so, too.

    Raises EngineMismatchError, OutOfMemoryError.
    """
    strategy = library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy if config is None else config)
    if context is None:
        raise library.error(where, "creating an execution context")
    return context


def give_memory(library: Library, context: Any, address: int, size_bytes: int, where: object) -> None:
    """Raises EngineMismatchError, OutOfMemoryError."""
    # The call answers nothing: that it was refused can only be read in the log.
    library.errors.clear()
    context.set_device_memory(address, size_bytes)
    if library.errors:
        raise library.error(where, "giving the execution context its memory")


def check_tensors(library: Library, engine: Any, entry: NetworkEntry, where: object) -> None:
    """Raises EngineMismatchError where the plan's inputs and outputs are not the manifest's, in whatever order."""
    mode = library.trt.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]

    def described(name: str) -> tuple[str, tuple[int, ...], str]:
        dtype: str = engine.get_tensor_dtype(name).name
        return name, tuple(engine.get_tensor_shape(name)), _DTYPES.get(dtype, dtype)

    for wanted, infos in ((mode.INPUT, entry.inputs), (mode.OUTPUT, entry.outputs)):
        got = sorted(described(name) for name in names if engine.get_tensor_mode(name) == wanted)
        known = sorted((info.name, info.shape, info.dtype) for info in infos)
        if got != known:
            expected = f"{known} by the manifest"
            raise EngineMismatchError(where, f"{entry.name} has {got}", expected, "compile the model again")
