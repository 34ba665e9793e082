"""A GPU without one: cuda-python and pycuda as far as the runtime uses them, over one simulated device.

What is put into a stream happens as late as CUDA allows: when the host waits for it, and what it waits for. A missing
wait, or a buffer that is used again too early, therefore gives wrong numbers. Names and parameters are those of the
real libraries, which tests check.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np

ALIGNMENT = 256
# Fewer than blocks of the pictures of tests, so that one has more than one part of a picture.
MULTIPROCESSORS = 2


class Simulator:
    """Memory, streams, events and graphs of one device. fail: CUDA function -> status that it answers with.

    log: names of what ran, in the order that it ran. calls: how often each CUDA function was called.
    """

    def __init__(self, capability=(8, 9), devices=("GeForce One", "GeForce Two"), total_bytes=1 << 26) -> None:
        self.capability, self.device_names, self.total_bytes = capability, devices, total_bytes
        self.device, self.host_memory, self.host = {}, {}, {}
        self.streams, self.events, self.graphs, self.modules = {}, {}, {}, {}
        self.capturing, self.log, self.calls, self.fail = {}, [], Counter(), {}
        self.spoiled = set()
        self.current, self.clock = None, 0.0
        self._numbers = itertools.count(4096, 512)

    def number(self) -> int:
        return next(self._numbers)

    # Memory

    def alloc(self, size_bytes: int) -> int | None:
        if sum(map(len, self.device.values())) + size_bytes > self.total_bytes:
            return None
        # Of the host, aligned as CUDA's: kernels are given addresses and nothing else.
        memory = np.full(size_bytes + ALIGNMENT, 0xFF, np.uint8)  # NaN, whatever it is taken for
        start = -memory.ctypes.data % ALIGNMENT
        address = memory.ctypes.data + start
        self.device[address] = memory[start : start + size_bytes]
        return address

    def memory(self, address: int, size_bytes: int) -> np.ndarray:
        """A view of device memory, from anywhere inside an allocation; KeyError where there is none."""
        for start, memory in self.device.items():
            if start <= address and address + size_bytes <= start + len(memory):
                return memory[address - start : address - start + size_bytes]
        raise KeyError(address)

    def alloc_pinned(self, size_bytes: int) -> np.ndarray:
        memory = np.full(size_bytes, 0xBB, np.uint8)
        self.host_memory[memory.ctypes.data] = memory
        return memory

    def tensor(self, address: int, shape, dtype) -> np.ndarray:
        """A view of device memory; KeyError where it was freed."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.device[address][:size].view(dtype).reshape(shape)

    def copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        if kind == "up":
            self.memory(target, size_bytes)[:] = _host(source, size_bytes)
        else:
            _host(target, size_bytes)[:] = self.memory(source, size_bytes)

    # Streams: queues of (name, function); a function may make other streams go on first

    def put(self, stream: int, name: str, function) -> None:
        if stream in self.capturing:
            self.capturing[stream].append((name, function))
        else:
            self.streams[stream].append((name, function))

    def step(self, stream: int) -> None:
        name, function = self.streams[stream].popleft()
        function()
        self.clock += 1.0
        if name:
            self.log.append(name)

    def drain(self, stream: int) -> None:
        assert stream not in self.capturing, "a stream that is captured cannot be waited for"
        while self.streams[stream]:
            self.step(stream)

    def record(self, event: int, stream: int) -> None:
        state = self.events[event] = {"stream": stream, "done": False, "time": 0.0}

        def mark() -> None:
            state["done"], state["time"] = True, self.clock

        self.put(stream, "", mark)

    def reach(self, state: dict) -> None:
        while not state["done"]:
            self.step(state["stream"])

    def wait(self, stream: int, event: int) -> None:
        # What the event is now, as CUDA does: it may be recorded anew or destroyed before the stream comes here.
        state = self.events[event]
        self.put(stream, "", lambda: self.reach(state))

    def idle(self) -> bool:
        return not any(self.streams.values())

    def leftovers(self) -> dict[str, int]:
        kinds = ("device", "host_memory", "streams", "events", "graphs", "modules")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}


def _host(address: int, size_bytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorLaunchFailure = 719


class CudaRuntime:
    """`cuda.bindings.runtime`."""

    cudaError_t = CudaError
    cudaStreamNonBlocking = 1
    cudaStream_t = int
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="local")

    def __init__(self, gpu: Simulator) -> None:
        self._gpu = gpu

    def __getattribute__(self, name: str):
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value
        gpu = self._gpu

        def call(*arguments):
            gpu.calls[name] += 1
            failure = gpu.fail.get(name)
            if failure is not None:
                return (CudaError[failure], *[None] * 3)[: 2 if name != "cudaMemGetInfo" else 3]
            result = value(*arguments)
            return result if result and isinstance(result[0], CudaError) else (CudaError.cudaSuccess, *result)

        return call

    def cudaGetDeviceCount(self):
        return (len(self._gpu.device_names),)

    def cudaDriverGetVersion(self):
        return (13020,)

    def cudaGetDeviceProperties(self, device):
        major, minor = self._gpu.capability
        name = self._gpu.device_names[device].encode()
        values = {"totalGlobalMem": self._gpu.total_bytes, "multiProcessorCount": MULTIPROCESSORS}
        return (SimpleNamespace(name=name, major=major, minor=minor, **values),)

    def cudaSetDevice(self, device):
        self._gpu.current = device
        return ()

    def cudaMalloc(self, size):
        address = self._gpu.alloc(size)
        return (CudaError.cudaErrorMemoryAllocation, None) if address is None else (address,)

    def cudaFree(self, devPtr):
        if self._gpu.capturing:
            # It would wait for the device: forbidden, and the end of the capture.
            self._gpu.spoiled |= set(self._gpu.capturing)
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        del self._gpu.device[devPtr]
        return ()

    def cudaMallocHost(self, size):
        return (self._gpu.alloc_pinned(size).ctypes.data,)

    def cudaFreeHost(self, ptr):
        del self._gpu.host_memory[ptr]
        return ()

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        self._gpu.put(stream, kind, lambda: self._gpu.copy(dst, src, count, kind))
        return ()

    def cudaMemsetAsync(self, devPtr, value, count, stream):
        self._gpu.put(stream, "clear", lambda: self._gpu.memory(devPtr, count).fill(value))
        return ()

    def cudaMemGetInfo(self):
        total = self._gpu.total_bytes
        return (total - sum(map(len, self._gpu.device.values())), total)

    def cudaStreamCreateWithFlags(self, flags):
        stream = self._gpu.number()
        self._gpu.streams[stream] = deque()
        return (stream,)

    def cudaStreamDestroy(self, stream):
        assert not self._gpu.streams.pop(stream), "a stream went while it had work"
        return ()

    def cudaStreamSynchronize(self, stream):
        self._gpu.drain(stream)
        return ()

    def cudaDeviceSynchronize(self):
        for stream in list(self._gpu.streams):
            self._gpu.drain(stream)
        return ()

    def cudaStreamWaitEvent(self, stream, event, flags):
        self._gpu.wait(stream, event)
        return ()

    def cudaEventCreateWithFlags(self, flags):
        event = self._gpu.number()
        self._gpu.events[event] = {"done": True, "time": 0.0, "stream": None}
        return (event,)

    def cudaEventDestroy(self, event):
        # What waits for it waits on.
        del self._gpu.events[event]
        return ()

    def cudaEventRecord(self, event, stream):
        self._gpu.streams.setdefault(stream, deque())
        self._gpu.record(event, stream)
        return ()

    def cudaEventSynchronize(self, event):
        self._gpu.reach(self._gpu.events[event])
        return ()

    def cudaEventElapsedTime(self, start, end):
        states = [self._gpu.events[event] for event in (start, end)]
        assert all(state["done"] for state in states), "times are read before the events are over"
        return (states[1]["time"] - states[0]["time"],)

    def cudaStreamBeginCapture(self, stream, mode):
        self._gpu.capturing[stream] = []
        return ()

    def cudaStreamEndCapture(self, stream):
        work, graph = self._gpu.capturing.pop(stream), self._gpu.number()
        if stream in self._gpu.spoiled:
            self._gpu.spoiled.remove(stream)
            return CudaError.cudaErrorStreamCaptureInvalidated, None
        self._gpu.graphs[graph] = work
        return (graph,)

    def cudaGraphInstantiate(self, graph, flags):
        executable = self._gpu.number()
        self._gpu.graphs[executable] = list(self._gpu.graphs[graph])
        return (executable,)

    def cudaGraphDestroy(self, graph):
        del self._gpu.graphs[graph]
        return ()

    def cudaGraphExecDestroy(self, graphExec):
        del self._gpu.graphs[graphExec]
        return ()

    def cudaGraphLaunch(self, graphExec, stream):
        for name, function in self._gpu.graphs[graphExec]:
            self._gpu.put(stream, f"graph {name}", function)
        return ()

    def cudaGetLastError(self):
        return ()


class PyCudaDriver:
    """`pycuda.driver`: pycuda is built from source with a CUDA toolkit, so that these names come from its manual."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    event_flags = SimpleNamespace(BLOCKING_SYNC=1)
    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16)

    def __init__(self, gpu: Simulator, module) -> None:
        """module: what stands for pycuda's Module."""
        self._gpu, self._runtime, self._module = gpu, CudaRuntime(gpu), module
        self.stack = []
        driver = self

        class Context:
            get_current = staticmethod(lambda: driver.stack[-1] if driver.stack else None)
            synchronize = staticmethod(lambda: [gpu.drain(stream) for stream in gpu.streams])

            def push(self):
                driver.stack.append(self)

            def pop(self):
                assert driver.stack.pop() is self

            def detach(self):
                gpu.calls["detach"] += 1

        class Device:
            count = staticmethod(lambda: len(gpu.device_names))

            def __init__(self, number):
                self.number = number

            def name(self):
                return gpu.device_names[self.number]

            def compute_capability(self):
                return gpu.capability

            def total_memory(self):
                return gpu.total_bytes

            def get_attribute(self, attribute):
                assert attribute == driver.device_attribute.MULTIPROCESSOR_COUNT
                return MULTIPROCESSORS

            def retain_primary_context(self):
                gpu.calls["retain_primary_context"] += 1
                gpu.current = self.number
                return Context()

        class Stream:
            def __init__(self, flags):
                self.handle = driver._runtime.cudaStreamCreateWithFlags(flags)[1]

            def synchronize(self):
                gpu.drain(self.handle)

            def wait_for_event(self, event):
                gpu.wait(self.handle, event.handle)

            def __del__(self):
                gpu.streams.pop(self.handle, None)

        class Event:
            def __init__(self, flags):
                self.handle = driver._runtime.cudaEventCreateWithFlags(flags)[1]

            def record(self, stream):
                gpu.record(self.handle, stream.handle)

            def synchronize(self):
                gpu.reach(gpu.events[self.handle])

            def time_till(self, event):
                return driver._runtime.cudaEventElapsedTime(self.handle, event.handle)[1]

            def __del__(self):
                gpu.events.pop(self.handle, None)

        self.Context, self.Device, self.Stream, self.Event = Context, Device, Stream, Event

    def init(self):
        if "init" in self._gpu.fail:
            raise self.Error(self._gpu.fail["init"])

    def get_driver_version(self):
        return 13020

    def mem_get_info(self):
        return self._runtime.cudaMemGetInfo()[1:]

    def mem_alloc(self, size):
        gpu, address = self._gpu, self._gpu.alloc(size)
        if address is None:
            raise self.MemoryError("cuMemAlloc failed: out of memory")

        class DeviceAllocation:
            def __int__(self):
                return address

            def free(self):
                del gpu.device[address]

        return DeviceAllocation()

    def pagelocked_empty(self, shape, dtype):
        gpu, memory = self._gpu, self._gpu.alloc_pinned(shape)

        class Pagelocked(np.ndarray):
            @property
            def base(self):
                return SimpleNamespace(free=lambda: gpu.host_memory.pop(memory.ctypes.data))

        return memory.view(Pagelocked)

    def module_from_buffer(self, image):
        if "module" in self._gpu.fail:
            raise self.Error(self._gpu.fail["module"])
        return self._module(self._gpu, image)

    def memset_d8_async(self, dest, data, count, stream):
        self._gpu.put(stream.handle, "clear", lambda: self._gpu.memory(dest, count).fill(data))

    def memcpy_htod_async(self, dest, src, stream):
        self._gpu.put(stream.handle, "up", lambda: self._gpu.copy(dest, src.ctypes.data, src.nbytes, "up"))

    def memcpy_dtoh_async(self, dest, src, stream):
        self._gpu.put(stream.handle, "down", lambda: self._gpu.copy(dest.ctypes.data, src, dest.nbytes, "down"))
