"""The one place that imports Ray: reach a cluster, ask its nodes, send rows through workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from intsr.cli.console import is_verbose
from intsr.errors import EXIT_SOME_FAILED, IntsrError, UsageError
from intsr.optional import require
from intsr.runtime.cluster import probe
from intsr.runtime.cluster.options import LOCAL

_CONNECT_S, _PROBE_S = 4.0, 120.0
# HTTP/2's first words and an empty frame of settings, which a gRPC server answers with its own (RFC 9113, 3.4).
_HTTP2_HELLO, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), 4


class ClusterError(IntsrError):
    """Work that ended on the cluster, and is no picture's fault."""

    exit_code = EXIT_SOME_FAILED


@dataclass(frozen=True, slots=True)
class Node:
    """A living node and what of it Ray may give away in all. gpus may be broken."""

    key: str
    name: str
    cpus: int
    gpus: float
    memory_bytes: int

    def room_for(self, cpus: int, gpus: float) -> int:
        """Return how many workers of that size fit."""
        by_gpu = int(self.gpus / gpus + 1e-6) if gpus else self.cpus
        return min(self.cpus // cpus, by_gpu)


@contextmanager
def connected(address: str) -> Iterator[Callable[[], None]]:
    """Reach the cluster, and yield what leaves it, which ends all that this command started there.

    It is called at the end in any case. Raises UsageError.
    """
    # Read by Ray as it is imported and started: nobody is told of what is done here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not is_verbose():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ":" in address:
        _check_reachable(address)
    ray = require("ray", "--ray")
    require("ray.data", "--ray")
    level = logging.INFO if is_verbose() else logging.CRITICAL
    settings = {"include_dashboard": False} if address == LOCAL else {}
    try:
        with _own_signals(), _muted():
            ray.init(address, log_to_driver=False, logging_level=level, **settings)
    except Exception as error:  # Of a token that is missing, a version that is another one, and more.
        ray.shutdown()
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError("--ray", f"{address}: {text}", "the address of a Ray cluster of this Ray") from error

    def leave() -> None:
        _end_executions()
        with _muted():
            ray.shutdown()

    try:
        _quiet(ray)
        yield leave
    finally:
        leave()


def _check_reachable(address: str) -> None:
    """Ray itself would try for more than a minute, and then end the process. Raises UsageError."""
    host, _, port = address.rpartition(":")
    expected, fix = "HOST:PORT of a Ray cluster's head node", "look it up there with: ray status"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as connection:
            # Over TLS Ray has to find out itself.
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            try:
                connection.sendall(_HTTP2_HELLO)
                answer = connection.recv(4)
            except ConnectionError:
                # Somebody is there who will not hear of it.
                answer = b""
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError("--ray", f"{address} cannot be reached ({why})", expected, fix) from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise UsageError("--ray", f"{address} answers, but is no Ray cluster", expected, fix)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Have the process's own handlers again, in whose place Ray puts its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended_by_ray = False
    try:
        yield
    except SystemExit as end:
        ended_by_ray = end.code == signal.SIGTERM
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if ended_by_ray:
            signal.raise_signal(signal.SIGTERM)


def _end_executions() -> None:
    """Wait for Ray Data's threads: after Ctrl-C they still talk to what is then gone, and the process would crash."""
    execution = require("ray.data._internal.execution.streaming_executor", "--ray").StreamingExecutor
    for thread in threading.enumerate():
        if isinstance(thread, execution):
            thread.shutdown(force=True)
            thread.join()


@contextmanager
def _muted() -> Iterator[None]:
    """Keep what Ray's libraries write into stderr by themselves away from it; its errors are exceptions."""
    if is_verbose():
        yield
        return
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A batch that is lost with its worker: `run.py` sends its pictures again.
    context.max_errored_blocks = -1
    # What raylets say would go to stdout, which is the reports'.
    ray._private.worker._worker_logs_enabled = False
    if not is_verbose():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context.print_on_execution_start = False


def free_cpus() -> float:
    """Return how many CPUs of the cluster nobody has taken."""
    return float(require("ray", "--ray").available_resources().get("CPU", 0))


def living_nodes() -> list[Node]:
    """Return the nodes that are alive, the largest first."""
    ray = require("ray", "--ray")
    nodes = []
    for entry in ray.nodes():
        has = entry["Resources"]
        name = f"{entry['NodeManagerHostname']} ({entry['NodeManagerAddress']})"
        facts = (int(has.get("CPU", 0)), float(has.get("GPU", 0)), int(has.get("memory", 0)))
        if entry["Alive"]:
            nodes.append(Node(entry["NodeID"], name, *facts))
    return sorted(nodes, key=lambda node: (-node.cpus, node.name, node.key))


def asked(nodes: Sequence[Node], engine_path: str, engine_digest: str) -> list[probe.NodeFacts]:
    """Ask the nodes, all at once, for `probe.facts_of_node`. Raises UsageError where one does not answer."""
    ray = require("ray", "--ray")
    strategies = require("ray.util.scheduling_strategies", "--ray")
    # By its source, as the node may not have this package.
    ray.cloudpickle.register_pickle_by_value(probe)
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(probe.facts_of_node)
        refs = []
        for node in nodes:
            there = strategies.NodeAffinitySchedulingStrategy(node.key, soft=False)
            refs.append(ask.options(scheduling_strategy=there).remote(engine_path, engine_digest))
        facts = []
        for node, ref in zip(nodes, refs, strict=True):
            try:
                facts.append(ray.get(ref, timeout=_PROBE_S))
            except ray.exceptions.RayError as error:
                text = str(error).strip().splitlines()[0]
                raise UsageError(f"node {node.name}", f"does not answer ({text})", fix="see `ray status`") from error
        return facts
    finally:
        ray.cloudpickle.unregister_pickle_by_value(probe)


def send(content: bytes) -> Any:
    """Put bytes where every node can fetch them from; returns the reference for `fetched`."""
    return require("ray", "--ray").put(content)


def fetched(reference: Any) -> bytes:
    """On a worker: what was sent."""
    content: bytes = require("ray", "--ray").get(reference)
    return content


def node_name() -> str:
    """On a worker: its node, as `Node.name`."""
    return next((node.name for node in living_nodes() if node.key == _own_node()), "unknown")


def memory_share_bytes(cpus: int, free_bytes: int | None) -> int | None:
    """On a worker of so many CPUs: its share of what Ray may use of the node, or what is free if that is less."""
    node = next((node for node in living_nodes() if node.key == _own_node()), None)
    shares = [free_bytes] if free_bytes is not None else []
    if node is not None and node.memory_bytes and node.cpus:
        shares.append(node.memory_bytes * cpus // node.cpus)
    return min(shares, default=None)


def _own_node() -> str:
    node: str = require("ray", "--ray").get_runtime_context().get_node_id()
    return node


def through_workers(
    rows: Sequence[dict[str, Any]],
    worker: Callable[..., Any],
    argument: Any,
    *,
    actors: int,
    rows_at_once: int,
    ahead: int,
    cpus: int,
    gpus: float,
) -> Iterator[bytes]:
    """Yield the column `made` of what `worker(argument)`, called with so many rows at once, returns, as it comes.

    ahead: batches that a worker has, with the one in work. Those of a worker that was lost give nothing, and another
    one is started in its place. Raises ClusterError where none can be.
    """
    data = require("ray.data", "--ray")
    made = data.from_items(list(rows), override_num_blocks=-(-len(rows) // rows_at_once))
    with warnings.catch_warnings():
        # Ray says of the last two that 2.64 will call them otherwise; the version is pinned.
        warnings.simplefilter("ignore")
        made = made.map_batches(
            worker,
            batch_size=None,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=ahead),
            fn_constructor_args=(argument,),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,
        )
    try:
        for block in made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from block["made"]
    except require("ray", "--ray").exceptions.RayError as error:
        text = str(error).strip().splitlines()[-1]
        raise ClusterError("--ray", f"the cluster ended the work ({text})", fix="look into Ray's logs") from error
