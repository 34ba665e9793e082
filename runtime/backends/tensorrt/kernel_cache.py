"""Kernels that TensorRT-RTX compiled for this GPU, kept in the user's cache from one start to the next.

An RTX plan is finished on the GPU that it runs on: when its execution context is made and at its first run.
`tensorrt_rtx` keeps what that gave (`IRuntimeCache`); plans of the target `tensorrt` need no such thing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from intsr.cuda.driver import CudaDevice
from intsr.runtime.backends.tensorrt.library import Library
from intsr.user_cache import KeptFile, user_cache, warn_of_cache

_WHAT = "compiled kernels"
_PLAN_DIGITS = 32
_NAME_CHARACTERS = 80


class KernelCache:
    """Of one network. config: for its execution context, which must go before this: TensorRT holds neither."""

    def __init__(self, library: Library, engine: Any, path: Path, where: object) -> None:
        """Raises EngineMismatchError, OutOfMemoryError where TensorRT makes none."""
        config = engine.create_runtime_config()
        if config is None:
            raise library.error(where, "creating a runtime configuration")
        config.set_execution_context_allocation_strategy(library.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.config, self._file, self._saved = config, KeptFile(path, _WHAT), False
        self._cache = config.create_runtime_cache()
        if self._cache is None:
            raise library.error(where, "creating a runtime cache")
        content = self._file.read()
        if content and self._cache.deserialize(content) is False:
            # Which leaves the cache as it was: empty.
            self._file.warn("TensorRT-RTX does not take it, for example because of another driver")
        if config.set_runtime_cache(self._cache) is False:
            self._file.warn("TensorRT-RTX uses none here")
        # What it had to say of a cache is no reason for anything that fails later.
        library.errors.clear()

    def save(self) -> None:
        """Once, after the first run; a second time does nothing, nor where nothing was compiled."""
        if self._saved:
            return
        self._saved = True
        serialized = self._cache.serialize()
        self._file.write(b"" if serialized is None else bytes(memoryview(serialized)))


def open_kernel_cache(
    library: Library, engine: Any, plan_sha256: str, device: CudaDevice, where: object
) -> KernelCache | None:
    """Return None where the library keeps no kernels. Raises EngineMismatchError, OutOfMemoryError."""
    # TensorRT has the class, too, without this method.
    if not hasattr(getattr(library.trt, "IRuntimeConfig", None), "create_runtime_cache"):
        return None
    try:
        path = kernel_cache_path(plan_sha256, device, str(library.trt.__version__))
    except OSError as error:
        warn_of_cache(_WHAT, str(error))
        return None
    return KernelCache(library, engine, path, where)


def kernel_cache_path(plan_sha256: str, device: CudaDevice, version: str) -> Path:
    """Return a file for a plan, model of GPU and version of TensorRT-RTX, which takes back none of another.

    Raises OSError where the user has no home.
    """
    folder = user_cache("tensorrt-rtx")
    major, minor = device.capability
    kind = re.sub(r"[^\w.-]", "_", f"{device.name[:_NAME_CHARACTERS]}-sm{major}{minor}-{version}")
    return folder / f"{plan_sha256[:_PLAN_DIGITS]}-{kind}.kernels"
