"""Jobs to the workers of a cluster, and their reports back; what is lost with a worker is sent again.

round 1   batches of pictures, two a worker
round 2   what came back from none: one picture at a time, its output replaced
round 3   the same once more; who is lost then is a picture that ends whoever works on it
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from intsr.cli.console import Stopwatch, detail, say
from intsr.errors import EngineMismatchError, UsageError, printable
from intsr.files import remove_stale_parts
from intsr.manifest import Manifest
from intsr.runtime.backends.protocol import SessionOptions
from intsr.runtime.batch.files import FileReport, settled
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.cluster.addresses import RemoteOutputs
from intsr.runtime.cluster.engine_file import code_digest, engine_digest
from intsr.runtime.cluster.options import ClusterOptions, on_gpu
from intsr.runtime.cluster.ray import (
    ClusterError,
    Node,
    asked,
    connected,
    free_cpus,
    living_nodes,
    send,
    through_workers,
)
from intsr.runtime.cluster.worker import EngineSource, Fault, Task, Worker
from intsr.runtime.tiles.blend import TileProgress

DEFAULT_CPUS = 2
_TRIES = 3
# Reading and writing at the ends of a batch have nothing beside them; a lost worker loses up to two batches.
_BATCHES_A_WORKER, _MOST_AT_ONCE = 16, 32
_ENDING_S, _ENDING_TRIES = 1.0, 5


@dataclass(frozen=True, slots=True)
class _Shape:
    """Workers, and the nodes that have room for one."""

    nodes: tuple[Node, ...]
    actors: int
    cpus: int
    gpus: float


@dataclass(frozen=True, slots=True)
class ClusterBatch:
    """Pictures through the workers of a cluster, as `Batch` does here. remote: None for outputs on a path that all
    nodes share.
    """

    cluster: ClusterOptions
    engine: Path
    manifest: Manifest
    session: SessionOptions
    options: FileOptions
    auto_tile: bool
    resuming: bool
    remote: RemoteOutputs | None

    def reports(
        self,
        jobs: Sequence[Job],
        tile_progress: TileProgress | None = None,
        skip: Callable[[Job], bool] = lambda job: False,
    ) -> Generator[FileReport]:
        """Yield one a job as they come, which is in no order; without a cluster where nothing is to be done.
        tile_progress: not called, as tiles are elsewhere.

        Raises UsageError, ClusterError, EngineMismatchError, MissingLibraryError.
        """
        wanted: dict[int, Job] = {}
        for index, job in enumerate(jobs):
            report = settled(job, skip)
            if report is None:
                wanted[index] = job
            else:
                yield report
        if wanted:
            outputs = [job.output for job in wanted.values()]
            with connected(self.cluster.address) as leave, self._cleaned(outputs, leave):
                yield from self._made(wanted)

    def _made(self, wanted: dict[int, Job]) -> Iterator[FileReport]:
        watch = Stopwatch()
        shape = _shape(self.cluster, living_nodes(), on_gpu(self.manifest.target, self.session.device))
        task = self._task(shape)
        detail(f"ray: {shape.actors} workers of {shape.cpus} CPUs and {shape.gpus:g} GPUs ({watch.seconds:.1f} s)")
        if free_cpus() < shape.cpus:
            say(f"ray: waiting for {shape.cpus} CPUs: all are taken")
        for attempt in range(_TRIES):
            if not wanted:
                return
            if attempt:
                say(f"ray: {len(wanted)} pictures were lost with their workers, and are sent again")
                # Whatever is there now, the worker that was lost has put it there.
                task = replace(task, resuming=False, options=replace(self.options, overwrite=True))
            for index, report in _round(wanted, task, shape, again=attempt > 0):
                yield _as_planned(report, wanted.pop(index))
        for job in wanted.values():
            why = f"the worker that had it ended, {_TRIES} times: killed, out of memory, or by this picture"
            text = printable(f"{job.source}: {why}; look into Ray's logs")
            yield FileReport(str(job.source), str(job.output), "failed", error=text)

    def _task(self, shape: _Shape) -> Task:
        gpu = on_gpu(self.manifest.target, self.session.device)
        threads = self.session.threads if gpu else self.session.threads or shape.cpus
        session = replace(self.session, threads=threads)
        source = EngineSource(Path(os.path.abspath(self.engine)), engine_digest(self.engine))  # noqa: PTH100
        if _some_lack_it(shape.nodes, source):
            source = replace(source, sent=send(self.engine.read_bytes()))
        return Task(source, session, self.options, self.auto_tile, shape.cpus, self.resuming, self.remote)

    def close(self) -> None:
        """Nothing is open between two calls of `reports`."""

    @contextmanager
    def _cleaned(self, outputs: Sequence[Path], leave: Callable[[], object]) -> Iterator[None]:
        """Whatever happens inside, no part of a file stays. leave: ends the workers."""
        ended = False
        try:
            yield
            ended = True
        finally:
            leave()
            # Workers that were told to end take a moment.
            for _ in range(1 if ended else _ENDING_TRIES):
                if self.remote is not None:
                    self.remote.remove_parts(outputs)
                else:
                    remove_stale_parts(outputs)
                if not ended:
                    time.sleep(_ENDING_S / _ENDING_TRIES)


def _shape(cluster: ClusterOptions, nodes: Sequence[Node], gpu: bool) -> _Shape:
    """Raises UsageError where no node has room for a worker, and nobody said that one is to be waited for."""
    gpus = cluster.gpus_per_actor if cluster.gpus_per_actor is not None else float(gpu)
    fitting = [node.cpus for node in nodes if node.cpus and node.room_for(1, gpus)]
    cpus = cluster.cpus_per_actor or min([DEFAULT_CPUS, *fitting])
    room = {node: node.room_for(cpus, gpus) for node in nodes}
    with_room = tuple(node for node, count in room.items() if count)
    if not with_room and cluster.actors is None:
        there = ", ".join(f"{node.name}: {node.cpus} CPUs, {node.gpus:g} GPUs" for node in nodes[:4])
        fix = "give --cpus-per-actor or --gpus-per-actor; with --ray-actors, nodes that are to come are waited for"
        raise UsageError("--ray", f"no node has {cpus} CPUs and {gpus:g} GPUs ({there})", fix=fix)
    return _Shape(with_room, cluster.actors or sum(room.values()), cpus, gpus)


def _some_lack_it(nodes: Sequence[Node], source: EngineSource) -> bool:
    """Raises EngineMismatchError, naming the node, where one cannot work or would make other pictures."""
    own, lacks = code_digest(), not nodes
    for node, facts in zip(nodes, asked(nodes, str(source.path), source.digest), strict=True):
        if facts.problem:
            raise EngineMismatchError(f"node {node.name}", facts.problem)
        if facts.code != own:
            fix = "install the same on all nodes"
            raise EngineMismatchError(f"node {node.name}", "another version of intsr", "the one of this machine", fix)
        lacks = lacks or not facts.has_engine
    return lacks


def _round(wanted: dict[int, Job], task: Task, shape: _Shape, *, again: bool) -> Iterator[tuple[int, FileReport]]:
    """Send the jobs once. Raises ClusterError."""
    actors = min(shape.actors, len(wanted))
    # A film is a day's work by itself.
    apart = again or any(job.is_film for job in wanted.values())
    at_once = 1 if apart else max(min(len(wanted) // (actors * _BATCHES_A_WORKER), _MOST_AT_ONCE), 1)
    rows = [{"index": index, "job": pickle.dumps(_absolute(job, task.remote))} for index, job in wanted.items()]
    made = through_workers(
        rows,
        Worker,
        task,
        actors=min(actors, -(-len(rows) // at_once)),
        rows_at_once=at_once,
        # A picture that ends its worker takes what waits behind it along.
        ahead=1 if again else 2,
        cpus=shape.cpus,
        gpus=shape.gpus,
    )
    for content in made:
        reports: list[tuple[int, FileReport]] | Fault = pickle.loads(content)
        if isinstance(reports, Fault):
            if reports.bug:
                raise RuntimeError(reports.text)
            error = ClusterError(*reports.text.split(": ", 1))
            error.exit_code = reports.exit_code
            raise error
        yield from reports


def _absolute(job: Job, remote: RemoteOutputs | None) -> Job:
    """Workers stand elsewhere."""
    output = job.output if remote is not None else Path(os.path.abspath(job.output))  # noqa: PTH100
    return replace(job, source=Path(os.path.abspath(job.source)), output=output)  # noqa: PTH100


def _as_planned(report: FileReport, job: Job) -> FileReport:
    """Call files as the user does."""
    error = report.error
    for long, short in ((report.input, str(job.source)), (report.output, str(job.output))):
        error = None if error is None else error.replace(printable(long), printable(short))
    return replace(report, input=str(job.source), output=str(job.output), error=error)
