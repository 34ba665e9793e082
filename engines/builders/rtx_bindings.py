"""TensorRT-RTX's Python API, also where only PyPI can be reached.

`tensorrt_rtx`, NVIDIA's own bindings, wins where it is installed. Otherwise NVIDIA's `tensorrt_bindings` from PyPI
drive the RTX libraries that PyPI has inside an ONNX Runtime plugin: `rtx_shim/shim.c` stands in for the three
libraries that the bindings ask for, and forwards their entry points.

The two libraries' ABIs agree only in part, so the versions are pinned exactly, only the calls that
`tensorrt_build` makes are known to be safe, and all of it happens in a child process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module, metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from intsr.errors import BuildError, MissingLibraryError

# Distribution -> exact version; setup.py's extra `rtx` has the same.
PINNED = {"onnxruntime-ep-nv-tensorrt-rtx-cu13": "0.5.0", "tensorrt-cu13-bindings": "11.4.0.106"}
RTX_VERSION = "1.7.1"
_LIBRARIES_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_LIBRARIES = (f"libtensorrt_rtx.so.{RTX_VERSION}", f"libtensorrt_onnxparser_rtx.so.{RTX_VERSION}")
_SONAMES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_SHIM_SOURCE = Path(__file__).parent / "rtx_shim" / "shim.c"
_TARGET = "tensorrt-rtx"


def load() -> tuple[ModuleType, str]:
    """TensorRT's Python API over TensorRT-RTX, and the RTX library's version. Only in a process of its own.

    Raises MissingLibraryError, BuildError (other versions than the pinned ones, no C compiler, unsupported system).
    """
    if util.find_spec("tensorrt_rtx") is not None:
        module = import_module("tensorrt_rtx")
        return module, str(module.__version__)
    check_pinned_versions()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        system = f"{sys.platform} on {platform.machine()}"
        raise BuildError(_TARGET, system, "Linux on x86_64", "elsewhere, install NVIDIA's own tensorrt_rtx wheel")
    shims = shim_libraries()
    return _import_bindings(_libraries_folder(), shims), RTX_VERSION


def is_official(module: ModuleType) -> bool:
    """True for NVIDIA's own `tensorrt_rtx`, which has the calls that the PyPI bindings lack."""
    return module.__name__ == "tensorrt_rtx"


def check_pinned_versions() -> None:
    """Raises MissingLibraryError where a package is missing, BuildError where it has another version."""
    for distribution, expected in PINNED.items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise MissingLibraryError(distribution, "rtx", _TARGET) from error
        if version != expected:
            fix = f"install it with: pip install {distribution}=={expected}"
            raise BuildError(_TARGET, f"{distribution} {version}", f"exactly {expected}", fix)


def _libraries_folder() -> Path:
    # The package is found, not imported: importing it loads ONNX Runtime and writes links into its folder.
    spec = util.find_spec(_LIBRARIES_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in map(Path, folders):
        if all((folder / name).is_file() for name in _LIBRARIES):
            return folder
    fix = "install it again with: pip install --force-reinstall " + next(iter(PINNED))
    raise BuildError(_TARGET, f"{_LIBRARIES_PACKAGE} has no {' or no '.join(_LIBRARIES)}", fix=fix)


def shim_libraries() -> tuple[Path, ...]:
    """The three stand-in libraries, compiled on first use into the user's cache. Raises BuildError."""
    source = _SHIM_SOURCE.read_bytes()
    key = b"\0".join([source, RTX_VERSION.encode(), *(name.encode() for name in _SONAMES)])
    digest = hashlib.sha256(key).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intsr"
    folder = cache / f"rtx-shim-{digest}"
    if not folder.is_dir():
        _compile_into(folder)
    return tuple(folder / name for name in _SONAMES)


def _compile_into(folder: Path) -> None:
    compiler = _compiler()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        fix = "set XDG_CACHE_HOME to a folder that can be written"
        raise BuildError(folder.parent, f"cannot write here ({error.strerror})", fix=fix) from error
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name in _SONAMES:
                _compile(compiler, name, temporary / name, scratch)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first; what it made is the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compile(compiler: list[str], soname: str, output: Path, scratch: str) -> None:
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{soname}", "-o", str(output), str(_SHIM_SOURCE), "-ldl"]
    # Zig would otherwise leave 40 MB in the user's cache for three files of 16 KB.
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
    try:
        done = subprocess.run([*compiler, *flags], capture_output=True, text=True, check=False, env=environment)
        failed, message = done.returncode != 0, done.stderr
    except OSError as error:
        failed, message = True, str(error)
    if failed:
        last_line = (message.strip().splitlines() or ["no message"])[-1]
        fix = "name a working C compiler in the variable CC"
        raise BuildError(_TARGET, f"{shlex.join(compiler)} failed on {_SHIM_SOURCE.name}: {last_line}", fix=fix)


def _compiler() -> list[str]:
    """$CC, else the first of cc, gcc, clang, else the one in the package `ziglang`. Raises BuildError."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise BuildError(_TARGET, "no C compiler", "cc, gcc, clang or $CC", "install one with: pip install ziglang")


def _import_bindings(folder: Path, shims: tuple[Path, ...]) -> ModuleType:
    """Load the RTX libraries for themselves, then the shims for everyone, then the bindings."""
    # Kept for the bindings' own import: with NVIDIA's `tensorrt_libs` present they would load the real TensorRT.
    sys.modules["tensorrt_libs"] = None  # type: ignore[assignment]
    try:
        libraries = [ctypes.CDLL(str(folder / name), mode=os.RTLD_NOW | os.RTLD_LOCAL) for name in _LIBRARIES]
        for shim in shims:
            ctypes.CDLL(str(shim), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = import_module("tensorrt_bindings")
    except (OSError, ImportError) as error:
        fix = "install them again with: pip install --force-reinstall " + " ".join(PINNED)
        raise BuildError(_TARGET, f"the libraries cannot be loaded ({error})", fix=fix) from error
    _check_library_version(libraries[0])
    return module


def _check_library_version(library: Any) -> None:
    major, minor, patch = (int(part) for part in RTX_VERSION.split("."))
    found = int(library.getInferLibVersion())
    if found != major * 10000 + minor * 100 + patch:
        raise BuildError(_TARGET, f"TensorRT-RTX reports version {found}", RTX_VERSION)
