"""Target `tensorrt`: NVIDIA data-centre and RTX GPUs; builds on the GPU that it is for."""

from __future__ import annotations

import ctypes
from pathlib import Path

from intsr.engines.builders.tensorrt_common import BuilderLibrary, build_plan
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError
from intsr.optional import require

TARGET = "tensorrt"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def build(onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Build one network on GPU 0; run it in a child process (`child.build_in_child`).

    Raises BuildError, MissingLibraryError.
    """
    module = require("tensorrt", TARGET)
    capability = _compute_capability(_driver())
    architecture = architecture_from_capability(capability, options.hardware_compatibility)
    library = BuilderLibrary(module, TARGET, str(module.__version__), architecture)
    return build_plan(library, onnx_path, plan_path, options)


def architecture_from_capability(capability: tuple[int, int], hardware_compatibility: str) -> str:
    """`sm89` for a GPU of capability (8, 9); `sm80+` for plans that every GPU from Ampere up may run."""
    if hardware_compatibility == "ampere+":
        return "sm80+"
    return f"sm{capability[0]}{capability[1]}"


def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        fix = "build on a machine with one, or use --target tensorrt-rtx, which needs none"
        raise BuildError(TARGET, "no NVIDIA driver", "the GPU that the engine is for", fix) from error
    return driver


def _compute_capability(driver: ctypes.CDLL) -> tuple[int, int]:
    """(major, minor) of the first visible GPU."""
    device, values = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    results = [driver.cuInit(0), driver.cuDeviceGet(ctypes.byref(device), 0)]
    for value, attribute in zip(values, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        results.append(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    if any(results):
        raise BuildError(TARGET, f"the NVIDIA driver reports error {next(r for r in results if r)}", "a usable GPU")
    return values[0].value, values[1].value
