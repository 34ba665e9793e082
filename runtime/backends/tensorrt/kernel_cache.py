"""Kernels that TensorRT-RTX compiled for this GPU, kept in the user's cache from one start to the next.

An RTX plan is finished on the GPU that it runs on: when its execution context is made and at its first run.
`tensorrt_rtx` keeps what that gave (`IRuntimeCache`); plans of the target `tensorrt` need no such thing.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

from intsr.cuda.driver import CudaDevice
from intsr.errors import IntsrError
from intsr.files import atomic_path
from intsr.runtime.backends.tensorrt.library import Library

# In front of a file's content: its SHA-256. What does not agree with it never comes before TensorRT.
_DIGEST_BYTES = 32
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
        self.config, self._path, self._saved, self._digest = config, path, False, b""
        self._cache = config.create_runtime_cache()
        if self._cache is None:
            raise library.error(where, "creating a runtime cache")
        content = self._read()
        if content and self._cache.deserialize(content) is False:
            # Which leaves the cache as it was: empty.
            self._warn("TensorRT-RTX does not take it, for example because of another driver")
        if config.set_runtime_cache(self._cache) is False:
            self._warn("TensorRT-RTX uses none here")
        # What it had to say of a cache is no reason for anything that fails later.
        library.errors.clear()

    def _read(self) -> bytes:
        """Empty where there is none, or none that is whole."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn(f"it cannot be read ({error.strerror})")
            return b""
        self._digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != self._digest:
            self._warn("its content is damaged")
            self._digest, content = b"", b""
        return content

    def save(self) -> None:
        """Once, after the first run; a second time does nothing, nor where nothing was compiled."""
        if self._saved:
            return
        self._saved = True
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(memoryview(serialized))
        digest = hashlib.sha256(content).digest()
        if not content or digest == self._digest:
            return
        try:
            with atomic_path(self._path) as temporary:
                temporary.write_bytes(digest + content)
        except (IntsrError, OSError) as error:
            self._warn(f"it cannot be written ({error})")

    def _warn(self, reason: str) -> None:
        # Slower, not wrong: no reason to stop, and one to say so.
        _warn(f"{self._path}: {reason}")


def _warn(reason: str) -> None:
    text = f"compiled kernels of an earlier start cannot be used or kept, which costs time: {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def open_kernel_cache(
    library: Library, engine: Any, plan_sha256: str, device: CudaDevice, where: object
) -> KernelCache | None:
    """Return None where the library keeps no kernels. Raises EngineMismatchError, OutOfMemoryError."""
    # TensorRT has the class, too, without this method.
    if not hasattr(getattr(library.trt, "IRuntimeConfig", None), "create_runtime_cache"):
        return None
    try:
        path = kernel_cache_path(plan_sha256, device, str(library.trt.__version__))
    except RuntimeError as error:
        _warn(f"{error}; set XDG_CACHE_HOME")
        return None
    return KernelCache(library, engine, path, where)


def kernel_cache_path(plan_sha256: str, device: CudaDevice, version: str) -> Path:
    """Return a file for a plan, model of GPU and version of TensorRT-RTX, which takes back none of another.

    Raises RuntimeError where the user has no home.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "intsr" / "tensorrt-rtx"
    major, minor = device.capability
    kind = re.sub(r"[^\w.-]", "_", f"{device.name[:_NAME_CHARACTERS]}-sm{major}{minor}-{version}")
    return folder / f"{plan_sha256[:_PLAN_DIGITS]}-{kind}.kernels"
