"""Runs the kernels' own sources on the CPU, a thread at a time: kernels/cuda/emulate.h.

Checks indexing, barriers, data flow and parameter layouts without a GPU. Arrays end at a page that nobody may touch,
and compilers that can add checks of alignment, shifts and overflow: such a mistake ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intsr.arrays import Array
from intsr.cuda.arrays import DeviceArray
from intsr.errors import BuildError, VerificationError
from intsr.kernels.launches import sources
from intsr.kernels.launches.launch import Launch, Plan
from intsr.kernels.launches.parameters import KERNELS

_FLAGS = ("-std=c++17", "-O1", "-DINTSR_EMULATE", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas")
_CHECKS = ("-fsanitize=alignment,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error")


def find_cpp_compiler() -> list[str]:
    """Return $CXX, else the first of c++, g++, clang++, else that of the package `ziglang`. Raises BuildError."""
    if os.environ.get("CXX"):
        return os.environ["CXX"].split()
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    expected = "c++, g++, clang++ or $CXX"
    raise BuildError("emulated kernels", "no C++ compiler", expected, "install one with: pip install ziglang")


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    """Return a source's kernels as a shared library, compiled once for each state of the sources."""
    compiler = find_cpp_compiler()
    files = [sources.cuda_path(source), sources.FOLDER / "common.cuh", sources.FOLDER / "emulate.h"]
    command = [*compiler, *_FLAGS, *_CHECKS, f"-I{sources.FOLDER}"]
    digest = hashlib.sha256("\0".join([*command, *(file.read_text() for file in files)]).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"intsr-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BuildError(folder, "a folder of another user", fix="set TMPDIR to a folder of your own")
    library = folder / f"{files[0].stem}-{digest[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            result = subprocess.run(
                [*command, "-x", "c++", str(files[0]), "-o", str(made)], capture_output=True, text=True
            )
            if result.returncode:
                raise BuildError(files[0], result.stderr.strip()[:500] or "a failing compiler")
            made.rename(library)
    return ctypes.CDLL(str(library))


def _guarded(size_bytes: int) -> tuple[int, mmap.mmap]:
    """Return memory whose end is a page without access: its address, 16-byte aligned, and what keeps it."""
    page = mmap.PAGESIZE
    inside = -(-max(size_bytes, 1) // 16) * 16
    pages = -(-inside // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(start + pages * page, page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return start + pages * page - inside, memory


class EmulatedDevice:
    """A GPU played by this CPU. capability, shared_bytes: of the GPU to play; they decide which checks run."""

    def __init__(self, capability: tuple[int, int] = (9, 0), shared_bytes: int = 99 * 1024) -> None:
        self.name, self.multiprocessors, self.emulated = "the CPU, emulating", 6, True
        self.capability, self.shared_bytes = capability, shared_bytes

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        pointer, memory = _guarded(int(np.prod(shape)) * kind.itemsize)
        array = DeviceArray(pointer, tuple(shape), kind, memory)
        # Garbage, so that what a kernel forgets to write is seen.
        ctypes.memset(pointer, 0xCB, array.size_bytes)
        return array

    def upload(self, array: Array) -> DeviceArray:
        dense = np.ascontiguousarray(array)
        result = self.empty(dense.shape, dense.dtype)
        ctypes.memmove(result.pointer, dense.ctypes.data, dense.nbytes)
        return result

    def download(self, array: DeviceArray) -> Array:
        result = np.empty(array.shape, array.dtype)
        ctypes.memmove(result.ctypes.data, array.pointer, array.size_bytes)
        return result

    def run(self, plan: Plan) -> DeviceArray:
        """Raises VerificationError for what the emulation noticed."""
        for launch in plan.launches:
            self._launch(launch)
        return plan.output

    def _launch(self, launch: Launch) -> None:
        library = _library(KERNELS[launch.kernel][0])
        function: Any = library[launch.kernel]
        function.restype = ctypes.c_char_p
        expected = library[f"{launch.kernel}_params"]()
        if expected != ctypes.sizeof(launch.params):
            got = f"parameters of {ctypes.sizeof(launch.params)} bytes"
            raise VerificationError(launch.kernel, got, f"{expected} as in its source")
        grid = (ctypes.c_uint * 3)(*launch.grid)
        problem = function(ctypes.byref(launch.params), grid, launch.block, launch.cluster, launch.shared_bytes)
        if problem is not None:
            raise VerificationError(launch.kernel, problem.decode())

    def milliseconds(self, plan: Plan, repeats: int) -> float:
        """Time the emulation, once; it says nothing about a GPU."""
        start = time.perf_counter()
        self.run(plan)
        return (time.perf_counter() - start) * 1e3

    def copy_milliseconds(self, size_bytes: int, repeats: int) -> float:
        raise VerificationError("copy bandwidth", "an emulated device", "a GPU")
