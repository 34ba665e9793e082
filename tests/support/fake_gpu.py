"""A GPU without one: memory, streams, events and graphs of a simulated device; `fake_driver` has the libraries.

What is put into a stream happens as late as CUDA allows: when the host waits for it, and what it waits for. A missing
wait, or a buffer that is used again too early, therefore gives wrong numbers.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter, deque

import numpy as np

ALIGNMENT = 256


class Simulator:
    """Memory, streams, events and graphs of one device. fail: CUDA function -> status that it answers with.

    log: names of what ran, in the order that it ran. calls: how often each CUDA function was called.
    """

    def __init__(self, capability=(8, 9), devices=("GeForce One", "GeForce Two"), total_bytes=1 << 26) -> None:
        self.capability, self.device_names, self.total_bytes = capability, devices, total_bytes
        # Fewer than blocks of the pictures of tests, so that one has more than one part of a picture.
        self.multiprocessors = 2
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

    def memory_info(self) -> tuple[int, int]:
        return self.total_bytes - sum(map(len, self.device.values())), self.total_bytes

    # Streams: queues of (name, function); a function may make other streams go on first

    def put(self, stream: int, name: str, function) -> None:
        if stream in self.capturing:
            self.capturing[stream].append((name, function))
        else:
            self.streams[stream].append((name, function))

    def put_copy(self, target: int, source: int, size_bytes: int, kind: str, stream: int) -> None:
        """kind: `up`, `down` or, within the device, `copy`."""

        def run() -> None:
            of_target, of_source = (_host if kind == place else self.memory for place in ("down", "up"))
            of_target(target, size_bytes)[:] = of_source(source, size_bytes)

        self.put(stream, kind, run)

    def put_fill(self, address: int, value: int, size_bytes: int, stream: int) -> None:
        self.put(stream, "clear", lambda: self.memory(address, size_bytes).fill(value))

    def create_stream(self) -> int:
        stream = self.number()
        self.streams[stream] = deque()
        return stream

    def create_event(self) -> int:
        event = self.number()
        self.events[event] = {"done": True, "time": 0.0, "stream": None}
        return event

    def elapsed(self, start: int, end: int) -> float:
        states = [self.events[event] for event in (start, end)]
        assert all(state["done"] for state in states), "times are read before the events are over"
        return states[1]["time"] - states[0]["time"]

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

    def drain_all(self) -> None:
        for stream in list(self.streams):
            self.drain(stream)

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
