"""Work that is put into a stream again and again: captured, and launched as one from then on."""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from intsr.cuda.driver import Cuda
from intsr.errors import IntsrError

# A network's. A caller that brings a new array every time must not fill the device with graphs.
MAX_GRAPHS = 8
# Keys that came once and may come again; those that came earlier are taken for new.
MAX_SEEN = 64
# A capture may fail for what another part of the process did meanwhile: one more is tried, on a later run.
MAX_FAILURES = 2


class GraphCache:
    """One graph a key, the oldest dropped first. name: of what it launches, for a warning."""

    def __init__(self, cuda: Cuda, name: str) -> None:
        # False without support for graphs, or after `MAX_FAILURES` captures failed.
        self.active = cuda.graphs
        self._cuda, self._name, self._failures = cuda, name, 0
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def run(self, key: Hashable, enqueue: Callable[[Any], None], stream: Any) -> None:
        """Put into the stream what `enqueue(stream)` does for `key`: the shapes and addresses it works on.

        The first time it runs as it is: libraries load and allocate in their first run, which a capture forbids, and
        a caller whose arrays are new every time would pay for graphs that nobody launches. The second time it is
        captured, too, and from the third on the graph is launched.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._cuda.launch_graph(graph, stream)
            return
        enqueue(stream)
        if self.active and self._came_before(key):
            self._cuda.synchronize(stream)
            self._add(key, enqueue, stream)

    def _came_before(self, key: Hashable) -> bool:
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return False

    def _add(self, key: Hashable, enqueue: Callable[[Any], None], stream: Any) -> None:
        try:
            graph = self._capture(enqueue, stream)
        except IntsrError as error:
            self._failures += 1
            if self._failures == MAX_FAILURES:
                self.active = False
                # Slower, not wrong: no reason to stop, and one to say so.
                text = f"{self._name} runs without a CUDA graph, which costs some time: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            return
        while len(self._graphs) >= MAX_GRAPHS:
            # The stream is idle here, so that none of them is running.
            self._cuda.destroy_graph(self._graphs.popitem(last=False)[1])
        self._graphs[key] = graph
        del self._seen[key]

    def _capture(self, enqueue: Callable[[Any], None], stream: Any) -> Any:
        with _no_collection():
            self._cuda.begin_capture(stream)
            try:
                enqueue(stream)
            except BaseException:
                self._cuda.abandon_capture(stream)
                raise
            return self._cuda.end_capture(stream)

    def close(self) -> None:
        """Destroy all graphs; the stream must be idle."""
        while self._graphs:
            self._cuda.destroy_graph(self._graphs.popitem()[1])


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage inside: a finalizer that frees device memory in this thread spoils a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
