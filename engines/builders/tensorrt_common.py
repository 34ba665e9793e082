"""The build that both TensorRT targets share: ONNX in, serialized plan out, with what the builder said on the way.

Configuration and build go through Polygraphy's loaders. `NetworkFromOnnxPath` is not among them: it drops the
builder's verbose messages, which describe the finished plan, and the parser's own errors. Polygraphy's loaders of
engines are never used: they let a plan bring code that runs on the host.

Strongly typed: the ONNX graph carries all types, so there is no precision flag to set.
"""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.engines.builders.onnx_layers import layers_from_onnx, plugin_counts
from intsr.engines.builders.tensorrt_log import summarize_plan
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError
from intsr.files import atomic_path
from intsr.kernels.launches.group_norm_plugin import NAMESPACE, VERSION
from intsr.onnx_files import read_onnx
from intsr.optional import require
from intsr.runtime.backends.tensorrt.plan_header import AHEAD_OF_TIME
from intsr.targets import target_from_name

_WHAT = "building for TensorRT"


@dataclass(frozen=True, slots=True)
class BuilderLibrary:
    """A TensorRT that is loaded to build with."""

    # Its Python API.
    module: Any
    # The target.
    name: str
    version: str
    # What its plans will run on.
    gpu_architecture: str


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps all messages, verbose ones too, and prints those that matter to people."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.failures: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.failures.append(message)
            if severity.name != "VERBOSE":
                print(f"[{severity.name}] {message}", flush=True)

    return Logger()


def build_plan(library: BuilderLibrary, onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Build `onnx_path` into `plan_path`; nothing is written unless it succeeds. `peak_bytes` is left 0.

    Raises BuildError with every parser error in one line, ExportError for what is no ONNX file of ours.
    """
    model = read_onnx(onnx_path)
    layers, plugins = layers_from_onnx(model), plugin_counts(model)
    start = time.perf_counter()
    trt = library.module
    if plugins:
        _register_plugins(library)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 10 must be told to be strongly typed; 11 and RTX always are.
    typed = library.version.startswith("10.")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise BuildError(onnx_path, _parser_errors(parser) or "; ".join(logger.failures) or "cannot be parsed")
    try:
        plan = _serialized_plan(library, (builder, network, parser), options)
    except Exception as error:
        # Polygraphy's own exceptions repeat what the builder has logged.
        reasons = "; ".join(logger.failures) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BuildError(onnx_path, f"{library.name} {library.version} cannot build it: {reasons}") from error
    content = memoryview(plan)
    tag, expected = int.from_bytes(content[:4], "little"), target_from_name(library.name).plan_tag
    if tag != expected:
        raise BuildError(plan_path, f"the builder wrote something with tag {tag:#x}", f"a plan, {expected:#x}")
    with atomic_path(plan_path) as temporary:
        temporary.write_bytes(content)
    return BuildReport(
        seconds=time.perf_counter() - start,
        plan_bytes=plan_path.stat().st_size,
        peak_bytes=0,
        library=library.name,
        library_version=library.version,
        gpu_architecture=library.gpu_architecture,
        plan=(summarize_plan(logger.messages, layers) if options.detailed else {}) | _plugins_mapping(plugins),
    )


def _register_plugins(library: BuilderLibrary) -> None:
    """Before the parser looks for them. PTX for the GPU that the plan is for."""
    from intsr.kernels.tensorrt_plugin import ptx_architecture, register_plugins

    match = re.match(r"sm(\d+)(\d)", library.gpu_architecture)
    if library.name != "tensorrt" or match is None:
        fix = "export again without --plugins"
        raise BuildError(library.name, "graphs with plugins", "plain ones: it has no ahead-of-time plugins", fix)
    capability = (int(match[1]), int(match[2]))
    register_plugins(library.module, ptx_architecture(capability, library.gpu_architecture.endswith("+")))


def _plugins_mapping(counts: dict[str, int]) -> dict[str, Any]:
    """For the manifest: what a runtime would have to know. Kernels compiled ahead of time are in the plan itself."""
    found = [
        {"name": f"{NAMESPACE}::{name}", "version": VERSION, "compiled": AHEAD_OF_TIME, "layers": count}
        for name, count in counts.items()
    ]
    return {"plugins": found} if found else {}


def _parser_errors(parser: Any) -> str:
    """All of the parser's errors: node, operator, what it says."""
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # For an operator it does not know, the parser's text is the failed condition: "false".
        text = error.desc() if error.desc() not in ("", "false") else "not supported"
        node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
        errors.append(f"{node}{text} [{getattr(error.code(), 'name', error.code())}]")
    return "; ".join(errors)


def _serialized_plan(library: BuilderLibrary, parsed: tuple[Any, Any, Any], options: BuildOptions) -> Any:
    """The plan as a buffer. parsed: builder, network and parser. Raises PolygraphyException."""
    is_rtx = library.name == "tensorrt-rtx"
    # Polygraphy reads this when its loaders are imported: a process builds for one of the two.
    vars(require("polygraphy.config", _WHAT))["USE_TENSORRT_RTX"] = is_rtx
    loaders = require("polygraphy.backend.trt", _WHAT)
    configs = require("polygraphy.backend.tensorrt_rtx", _WHAT) if is_rtx else loaders
    create_config = configs.create_config_rtx if is_rtx else configs.create_config
    # No network: shapes are static, and without an optimization profile the plan is 400 bytes smaller.
    config = create_config(parsed[0], None, **config_settings(library.module, options))
    if options.timing_cache is not None and config.get_timing_cache() is None:
        # That of another library or GPU is no reason to fail: start an empty one.
        config.set_timing_cache(config.create_timing_cache(b""), False)
    plan = loaders.engine_bytes_from_network(parsed, config)
    if options.timing_cache is not None:
        with atomic_path(options.timing_cache) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return plan


def config_settings(trt: Any, options: BuildOptions) -> dict[str, Any]:
    """Arguments of Polygraphy's CreateConfig and CreateConfigRTX."""
    detailed = trt.ProfilingVerbosity.DETAILED if options.detailed else trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    # One stream: these networks are chains of kernels, and further streams add little but events to wait for.
    settings: dict[str, Any] = {"profiling_verbosity": detailed, "max_aux_streams": 0}
    if options.workspace_bytes is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_bytes}
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper().replace("+", "_PLUS").replace("-", "_")
        settings["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if options.timing_cache is not None and options.timing_cache.is_file():
        # As a file-like object: of a path, Polygraphy leaves a lock file beside it.
        settings["load_timing_cache"] = io.BytesIO(options.timing_cache.read_bytes())
    return settings
