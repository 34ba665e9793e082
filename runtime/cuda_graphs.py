"""Work that is put into a stream again and again: captured once, launched as one from then on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from intsr.errors import IntsrError
from intsr.runtime.cuda_interface import Cuda

# Of one network. A caller that brings a new array every time must not fill the device with graphs.
MAX_GRAPHS = 8


class GraphCache:
    """One graph a key, the oldest dropped first. name: of what it launches, for a warning.

    active: whether graphs are used here; False without support for them, or after one could not be captured.
    """

    def __init__(self, cuda: Cuda, name: str) -> None:
        self.active = cuda.graphs
        self._cuda, self._name = cuda, name
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, key: Hashable, enqueue: Callable[[Any], None], stream: Any) -> None:
        """Put into the stream what `enqueue(stream)` does for `key`: the shapes and addresses it works on.

        The first time it runs as it is: libraries load and allocate in their first run, which a capture forbids.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._cuda.launch(graph, stream)
            return
        enqueue(stream)
        if self.active:
            self._cuda.synchronize(stream)
            self._add(key, enqueue, stream)

    def _add(self, key: Hashable, enqueue: Callable[[Any], None], stream: Any) -> None:
        try:
            graph = self._capture(enqueue, stream)
        except IntsrError as error:
            self.active = False
            # Slower, not wrong: no reason to stop, and one to say so.
            text = f"{self._name} runs without a CUDA graph, which costs some time: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return
        while len(self._graphs) >= MAX_GRAPHS:
            # The stream is idle here, so that none of them is running.
            self._cuda.destroy_graph(self._graphs.popitem(last=False)[1])
        self._graphs[key] = graph

    def _capture(self, enqueue: Callable[[Any], None], stream: Any) -> Any:
        self._cuda.begin_capture(stream)
        try:
            enqueue(stream)
        except BaseException:
            self._cuda.abandon_capture(stream)
            raise
        return self._cuda.end_capture(stream)

    def close(self) -> None:
        """The stream must be idle."""
        while self._graphs:
            self._cuda.destroy_graph(self._graphs.popitem()[1])
