"""The build that both TensorRT targets share: ONNX in, serialized plan out, with what the builder said on the way.

Only calls that TensorRT 10, 11 and TensorRT-RTX have in common, and that work through `rtx_bindings`'s shim.
Strongly typed: the ONNX graph carries all types, so there is no precision flag to set.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from intsr.engines.builders.onnx_layers import layers_from_onnx
from intsr.engines.builders.tensorrt_log import summarize_plan
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError
from intsr.export.lower.plugins.group_norm import plugin_counts
from intsr.export.onnx.read import read_onnx
from intsr.files import atomic_path
from intsr.kernels.launches.group_norm_plugin import NAMESPACE, VERSION
from intsr.runtime.backends.tensorrt.plan_header import AHEAD_OF_TIME

# First four bytes of a plan, little-endian: `ftrt` of TensorRT, `vtrt` of TensorRT-RTX.
PLAN_TAGS = (0x74727466, 0x74727476)
_FAILURES = ("INTERNAL_ERROR", "ERROR")


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded TensorRT. module: its Python API. name: the target. gpu_architecture: what its plans will run on."""

    module: Any
    name: str
    version: str
    gpu_architecture: str


@dataclass(slots=True)
class BuilderLog:
    """Everything the builder said. messages: in order. failures: those that are errors."""

    messages: list[str]
    failures: list[str]


def make_logger(trt: ModuleType) -> tuple[Any, BuilderLog]:
    """A TensorRT logger that keeps all messages, verbose ones too, and prints those that matter to people."""
    log = BuilderLog([], [])

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.messages.append(message)
            if severity.name in _FAILURES:
                log.failures.append(message)
            if severity.name != "VERBOSE":
                print(f"[{severity.name}] {message}", flush=True)

    return Logger(), log


def build_plan(library: Library, onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Build `onnx_path` into `plan_path`; nothing is written unless it succeeds. `peak_bytes` is left 0.

    Raises BuildError with every parser error in one line, ExportError for what is no ONNX file of ours.
    """
    model = read_onnx(onnx_path)
    layers, plugins = layers_from_onnx(model), plugin_counts(model)
    start = time.perf_counter()
    trt = library.module
    if plugins:
        _register_plugins(library)
    logger, log = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, library.version))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise BuildError(onnx_path, _parser_errors(parser) or "; ".join(log.failures) or "cannot be parsed")
    config = _config(library, builder, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = "; ".join(log.failures) or "the builder gave no reason"
        raise BuildError(onnx_path, f"{library.name} {library.version} cannot build it: {reasons}")
    with atomic_path(plan_path) as temporary, temporary.open("wb") as file:
        file.write(memoryview(plan))
    _check_tag(plan_path)
    _save_timing_cache(config, options)
    return BuildReport(
        seconds=time.perf_counter() - start,
        plan_bytes=plan_path.stat().st_size,
        peak_bytes=0,
        library=library.name,
        library_version=library.version,
        gpu_architecture=library.gpu_architecture,
        plan=(summarize_plan(log.messages, layers).to_mapping() if options.detailed else {})
        | _plugins_mapping(plugins),
    )


def _register_plugins(library: Library) -> None:
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
    if not counts:
        return {}
    found = [
        {"name": f"{NAMESPACE}::{name}", "version": VERSION, "compiled": AHEAD_OF_TIME, "layers": count}
        for name, count in counts.items()
    ]
    return {"plugins": found}


def _network_flags(trt: ModuleType, version: str) -> int:
    """TensorRT 10 must be told to be strongly typed; 11 and RTX always are."""
    if int(version.split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


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


def _config(library: Library, builder: Any, options: BuildOptions) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # One stream: these networks are chains of kernels, and further streams add little but events to wait for.
    config.max_aux_streams = 0
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper().replace("+", "_PLUS").replace("-", "_")
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.compute_capabilities:
        _set_compute_capabilities(library, config, options.compute_capabilities)
    if options.timing_cache is not None:
        old = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(old)
        # A cache of another library or GPU is no reason to fail: start an empty one.
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _set_compute_capabilities(library: Library, config: Any, capabilities: tuple[int, ...]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        value = getattr(library.module.ComputeCapability, f"SM{capability}", None)
        # It answers False instead of raising, and would then build for other GPUs than asked.
        if value is None or not config.set_compute_capability(value, index):
            raise BuildError(library.name, f"compute capability {capability} is refused", "for example 86, 89 or 120")


def _save_timing_cache(config: Any, options: BuildOptions) -> None:
    cache = config.get_timing_cache() if options.timing_cache is not None else None
    if options.timing_cache is None or cache is None:
        return
    with atomic_path(options.timing_cache) as temporary:
        temporary.write_bytes(memoryview(cache.serialize()))


def _check_tag(plan_path: Path) -> None:
    with plan_path.open("rb") as file:
        tag = int.from_bytes(file.read(4), "little")
    if tag not in PLAN_TAGS:
        plan_path.unlink()
        raise BuildError(
            plan_path, f"the builder wrote something with tag {tag:#x}", f"a plan, {' or '.join(map(hex, PLAN_TAGS))}"
        )
