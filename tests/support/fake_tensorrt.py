"""TensorRT as far as the runtime uses it, over the simulated device of `fake_gpu`; names as in the real library."""

from __future__ import annotations

import enum
import json
import weakref
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np

_STRATEGIES = ("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", _STRATEGIES)
TensorIOMode = enum.Enum("TensorIOMode", ("NONE", "INPUT", "OUTPUT"))
DataType = enum.Enum("DataType", ("FLOAT", "HALF"))
ErrorSeverity = enum.Enum("ErrorSeverity", ("INTERNAL_ERROR", "ERROR", "INFO"))


class ILogger:
    def log(self, severity, msg):
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name, ms):
        raise NotImplementedError


HEADER_BYTES = 64
TAGS = {"tensorrt": 0x74727466, "tensorrt-rtx": 0x74727476}


def write_plan(target: str, version: tuple[int, ...], description: dict) -> bytes:
    """A plan's header as the libraries write it, then what the fake engine is to do."""
    header = bytearray(HEADER_BYTES)
    header[:4] = TAGS[target].to_bytes(4, "little")
    header[24:28] = bytes(version)
    return bytes(header) + json.dumps(description).encode()


class FakeTensorRT:
    """The `tensorrt` module. failures: `deserialize`, `context`, `memory`, `address`, `execute`, `capture`, `config`,
    `cache` -> what it logs. compiled: kernels, of `tensorrt_rtx`. faults: what would have crashed the process.
    """

    def __init__(self, gpu) -> None:
        self.gpu, self.failures, self.live = gpu, {}, Counter()
        self.deserialized, self.contexts, self.host_code_allowed = [], [], False
        self.ILogger, self.IProfiler = ILogger, IProfiler
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.TensorIOMode = TensorIOMode
        self.IRuntimeConfig, self.compiled, self.faults = IRuntimeConfig, [], []
        self.cache_contents, self.driver = [], "580"
        self.__version__ = "10.13.0.35"
        self.Runtime = partial(Runtime, self)

    def imported_as(self, name: str) -> FakeTensorRT:
        """As `tensorrt_rtx` it keeps kernels, too, and takes back those of the same driver."""
        if name == "tensorrt_rtx":
            self.IRuntimeConfig, self.__version__ = RtxRuntimeConfig, "1.7.1.116"
        return self

    def fails(self, what: str, logger) -> bool:
        if what in self.failures:
            logger.log(ErrorSeverity.INFO, "nothing to see here")
            logger.log(ErrorSeverity.ERROR, self.failures[what])
        return what in self.failures


class Runtime:
    def __init__(self, module, logger):
        self._module, self._logger = module, logger

    @property
    def engine_host_code_allowed(self):
        return self._module.host_code_allowed

    def deserialize_cuda_engine(self, serialized_engine):
        self._module.deserialized.append(bytes(serialized_engine))
        if self._module.fails("deserialize", self._logger):
            return None
        description = json.loads(bytes(serialized_engine[HEADER_BYTES:]))
        weights = self._module.gpu.alloc(description["weights_bytes"])
        if weights is None:
            self._logger.log(ErrorSeverity.ERROR, "Error Code 2: OutOfMemory (Requested size was 100 bytes.)")
            return None
        engine = RtxCudaEngine if self._module.IRuntimeConfig is RtxRuntimeConfig else ICudaEngine
        return engine(self._module, self._logger, description, weights)


class ICudaEngine:
    def __init__(self, module, logger, description, weights):
        self._module, self._logger, self._description, self._weights = module, logger, description, weights
        module.live["engine"] += 1

    def __del__(self):
        self._module.live["engine"] -= 1
        self._module.gpu.device.pop(self._weights)

    @property
    def num_io_tensors(self):
        return len(self._description["tensors"])

    @property
    def device_memory_size_v2(self):
        return self._description["arena_bytes"]

    def get_tensor_name(self, index):
        return self._description["tensors"][index][0]

    def _tensor(self, name):
        return next(tensor for tensor in self._description["tensors"] if tensor[0] == name)

    def get_tensor_shape(self, name):
        return self._tensor(name)[1]

    def get_tensor_dtype(self, name):
        return {"float32": DataType.FLOAT, "float16": DataType.HALF}[self._tensor(name)[2]]

    def get_tensor_mode(self, name):
        return TensorIOMode[self._tensor(name)[3]]

    def create_execution_context(self, strategy):
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self._module.fails("context", self._logger):
            return None
        context = IExecutionContext(self)
        self._module.contexts.append(context._state)
        return context


def space_to_depth(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def depth_to_space(x):
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def repeat_pictures(x):
    """The identity of latents; a picture four times, which `depth_to_space` makes each pixel four of."""
    return np.tile(x, (1, 4, 1, 1)) if x.shape[1] == 3 else x


def encode_next(x, before):
    return x.transpose(0, 2, 1, 3, 4).reshape(1, 12, 1, *x.shape[3:]) + np.concatenate([before] * 4, 1) / 4, x[
        :, :, -1:
    ]


def decode_next(denoised, before):
    frames = denoised - np.concatenate([before] * 4, 1) / 4
    frames = frames.reshape(1, 4, 3, *denoised.shape[3:]).transpose(0, 2, 1, 3, 4)
    return frames, frames[:, :, -1:]


FUNCTIONS = {
    "encoder": space_to_depth,
    "unet": repeat_pictures,
    "decoder": depth_to_space,
    # Those of `video_engines`.
    "encoder_start": lambda x: (np.concatenate([x] * 4, 1), x),
    "encoder_next": encode_next,
    "transformer": lambda x: x,
    "decoder_start": lambda x: (x[:, :3], x[:, :3]),
    "decoder_next": decode_next,
}


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._module = engine, engine._module
        self._state = SimpleNamespace(name=engine._description["name"], arena=None, addresses={}, warm=False)
        self.profiler = None
        self._module.live["context"] += 1

    def __del__(self):
        self._module.live["context"] -= 1

    def set_device_memory(self, memory, size):
        assert size >= self._engine.device_memory_size_v2
        if not self._module.fails("memory", self._engine._logger):
            self._state.arena = (memory, size)

    def set_tensor_address(self, name, memory):
        if self._module.fails("address", self._engine._logger):
            return False
        self._engine._tensor(name)
        self._state.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        gpu, state = self._module.gpu, self._state
        if self._module.fails("execute", self._engine._logger):
            return False
        capturing = stream_handle in gpu.capturing
        if capturing and (not state.warm or self._module.fails("capture", self._engine._logger)):
            return False
        addresses, tensors, arena = dict(state.addresses), self._engine._description["tensors"], state.arena
        function = FUNCTIONS[state.name]

        def run():
            views = {name: gpu.tensor(addresses[name], shape, dtype) for name, shape, dtype, _ in tensors}
            given, made = ([views[name] for name, _, _, of in tensors if of == mode] for mode in ("INPUT", "OUTPUT"))
            state.warm = True
            # Scratch memory is written over: two networks at once would spoil each other's.
            gpu.device[arena[0]][: arena[1]] = len(state.name)
            results = function(*given)
            for y, result in zip(made, results if isinstance(results, tuple) else (results,), strict=True):
                y[:] = result

        gpu.put(stream_handle, state.name, run)
        if self.profiler is not None:
            assert not capturing, "a graph reports no times"
            self.profiler.report_layer_time(f"{state.name}_conv", 1.5)
            self.profiler.report_layer_time(f"{state.name}_norm", 0.5)
        return True


class IRuntimeConfig:
    """As TensorRT has it."""

    def __init__(self, engine):
        self._engine, self._module, self._strategy = engine, engine._module, ExecutionContextAllocationStrategy.STATIC
        self._contexts = weakref.WeakSet()
        self._module.live["config"] += 1

    def __del__(self):
        self._module.live["config"] -= 1
        if self._contexts:
            self._module.faults.append("a configuration went before its context")

    def get_execution_context_allocation_strategy(self):
        return self._strategy

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy


class RtxRuntimeConfig(IRuntimeConfig):
    def create_runtime_cache(self):
        return None if self._module.fails("cache", self._engine._logger) else IRuntimeCache(self._module)

    def set_runtime_cache(self, cache):
        # It does not keep it: a cache that went leaves the context with a pointer to nothing.
        self._cache = weakref.ref(cache)
        return True


class IRuntimeCache:
    def __init__(self, module):
        self._module, self._kernels, self._contexts = module, [], weakref.WeakSet()
        module.live["cache"] += 1

    def __del__(self):
        self._module.live["cache"] -= 1
        if self._contexts:
            self._module.faults.append("a cache went before its context")

    def serialize(self):
        return bytearray(json.dumps([self._module.driver, self._kernels]).encode())

    def deserialize(self, blob):
        self._module.cache_contents.append(bytes(blob))
        driver, kernels = json.loads(blob)
        if driver != self._module.driver:
            return False
        self._kernels = kernels
        return True


class RtxCudaEngine(ICudaEngine):
    def create_runtime_config(self):
        return None if self._module.fails("config", self._logger) else RtxRuntimeConfig(self)

    def create_execution_context(self, runtime_config):
        if isinstance(runtime_config, ExecutionContextAllocationStrategy):
            return super().create_execution_context(runtime_config)
        strategy = runtime_config.get_execution_context_allocation_strategy()
        context = super().create_execution_context(strategy)
        if context is not None:
            context.__class__, context._cache = RtxExecutionContext, runtime_config._cache
            runtime_config._contexts.add(context)
            context._cache()._contexts.add(context)
            context._compile("at the start")
        return context


class RtxExecutionContext(IExecutionContext):
    def _compile(self, when):
        cache = self._cache()
        kernel = f"{self._state.name} {when}"
        if cache is None:
            self._module.faults.append("a context looked into a cache that went")
        elif kernel not in cache._kernels:
            self._module.compiled.append(kernel)
            cache._kernels.append(kernel)

    def execute_async_v3(self, stream_handle):
        self._compile("at the first run")
        return super().execute_async_v3(stream_handle)
