"""Target `tensorrt-rtx`: built ahead of time, without a GPU, for GeForce RTX 30 and later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from intsr.engines.builders.tensorrt_common import BuilderLibrary, build_plan
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError
from intsr.optional import require
from intsr.targets import target_from_name

TARGET = "tensorrt-rtx"
# What its plans are for.
ARCHITECTURE = ",".join(f"sm{major}{minor}" for major, minor in target_from_name(TARGET).gpu_capabilities)


def build(onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Build one network, in a child process (`child`). Raises BuildError, MissingLibraryError."""
    if options.hardware_compatibility == "same-compute-capability":
        got = "hardware compatibility same-compute-capability"
        raise BuildError(TARGET, got, "none: its plans run on all RTX GPUs", "leave the option out")
    if options.timing_cache is not None:
        raise BuildError(TARGET, "a timing cache", "none: it measures no kernels", "leave the option out")
    module = require("tensorrt_rtx", f"target {TARGET}")
    library = BuilderLibrary(module, TARGET, str(module.__version__), ARCHITECTURE)
    # RTX has no compatibility levels: `none` and `ampere+` both mean what it always does.
    return build_plan(library, onnx_path, plan_path, replace(options, hardware_compatibility="none"))
