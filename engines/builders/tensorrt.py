"""Target `tensorrt`: NVIDIA data-centre and RTX GPUs; builds on the GPU that it is for."""

from __future__ import annotations

from pathlib import Path

from intsr.cuda.driver import list_devices
from intsr.engines.builders.tensorrt_common import BuilderLibrary, build_plan
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError, EngineMismatchError
from intsr.optional import require

TARGET = "tensorrt"


def build(onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Build one network on GPU 0, in a child process (`child`). Raises BuildError, MissingLibraryError."""
    module = require("tensorrt", TARGET)
    architecture = architecture_from_capability(_compute_capability(), options.hardware_compatibility)
    library = BuilderLibrary(module, TARGET, str(module.__version__), architecture)
    return build_plan(library, onnx_path, plan_path, options)


def architecture_from_capability(capability: tuple[int, int], hardware_compatibility: str) -> str:
    """`sm89` for a GPU of capability (8, 9); `sm80+` for plans that every GPU from Ampere up may run."""
    if hardware_compatibility == "ampere+":
        return "sm80+"
    return f"sm{capability[0]}{capability[1]}"


def _compute_capability() -> tuple[int, int]:
    """Return (major, minor) of the first visible GPU. Raises BuildError where there is none."""
    try:
        devices = list_devices("cuda-python", TARGET, TARGET)
    except EngineMismatchError as error:
        fix = "build on a machine with one, or use --target tensorrt-rtx, which needs none"
        raise BuildError(TARGET, f"no usable GPU here ({error})", "the GPU that the engine is for", fix) from error
    if not devices:
        raise BuildError(TARGET, "the NVIDIA driver sees no GPU", "the GPU that the engine is for")
    return devices[0].capability
