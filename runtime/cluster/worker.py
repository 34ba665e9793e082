"""The actor: an engine that stays open, and the pictures of one batch after the other through it."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intsr import memory
from intsr.errors import EXIT_SOME_FAILED, IntsrError
from intsr.runtime.backends.protocol import SessionOptions
from intsr.runtime.batch.files import FileReport
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.options import FileOptions
from intsr.runtime.batch.run import Batch
from intsr.runtime.cluster.addresses import RemoteOutputs
from intsr.runtime.cluster.engine_file import found_engine, keep_engine
from intsr.runtime.cluster.ray import fetched, memory_share_bytes, node_name
from intsr.runtime.engine import Engine, open_engine_with


@dataclass(frozen=True, slots=True)
class EngineSource:
    """path: on the machine that sends it. sent: Ray's reference to the file's bytes, None where no node lacks it."""

    path: Path
    digest: str
    sent: Any = None


@dataclass(frozen=True, slots=True)
class Task:
    """What all workers of a cluster do. resuming: outputs that are there by then are left alone."""

    engine: EngineSource
    session: SessionOptions
    options: FileOptions
    auto_tile: bool
    cpus: int
    resuming: bool
    remote: RemoteOutputs | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What ended a worker's work, and is no picture's fault. bug: with a traceback, for whoever mends it."""

    text: str
    exit_code: int
    bug: bool = False


class Worker:
    """Ray Data's class for `map_batches`: columns `index` and `job` (pickled) in, one row `made` out.

    `made` is, pickled, a list of index and FileReport, or a Fault.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._engine: Engine | None = None
        self._memory_bytes: int | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        jobs = [pickle.loads(job) for job in rows["job"]]
        try:
            made: Any = list(zip(map(int, rows["index"]), self._reports(jobs), strict=True))
        except IntsrError as error:
            made = Fault(f"node {node_name()}: {error}", error.exit_code)
        except Exception:
            made = Fault(f"node {node_name()}:\n{traceback.format_exc()}", EXIT_SOME_FAILED, bug=True)
        return {"made": [pickle.dumps(made)]}

    def _reports(self, jobs: Sequence[Job]) -> Iterator[FileReport]:
        task, engine = self._task, self._opened()
        options = task.options
        if options.memory_bytes is None:
            options = replace(options, memory_bytes=self._memory_bytes)
        batch = Batch(engine, options, task.auto_tile)
        try:
            if task.remote is not None:
                yield from task.remote.uploaded(jobs, batch.reports)
            else:
                yield from batch.reports(jobs, None, self._is_skipped)
        finally:
            # It may have been opened again at another tile.
            self._engine = batch.engine.reopen(engine.tile_px)

    def _is_skipped(self, job: Job) -> bool:
        return self._task.resuming and not job.problem and job.output.exists()

    def _opened(self) -> Engine:
        if self._engine is None:
            self._memory_bytes = memory_share_bytes(self._task.cpus, memory.free_bytes())
            self._engine = self._open()
        return self._engine

    def _open(self) -> Engine:
        source = self._task.engine
        path = found_engine(source.path, source.digest)
        if path is None:
            if source.sent is None:
                fix = "put it on storage that all nodes share, or start again: it is then sent"
                raise IntsrError(source.path, "is not on this node, or not what it was at the start", fix=fix)
            path = keep_engine(fetched(source.sent), source.digest)
        return open_engine_with(path, self._task.session)
