"""`intsr upscale --ray` before there is a cluster: options, addresses, and what is sent where."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intsr.errors import UsageError
from intsr.runtime.batch.files import FileReport
from intsr.runtime.batch.jobs import Job
from intsr.runtime.cluster import addresses
from intsr.runtime.cluster import ray as cluster_ray
from intsr.runtime.cluster.addresses import RemoteOutputs, remote_outputs, send_file
from intsr.runtime.cluster.engine_file import engine_digest, found_engine, keep_engine, kept_engine
from intsr.runtime.cluster.options import ClusterOptions, cluster_options
from intsr.runtime.cluster.probe import facts_of_node
from intsr.runtime.cluster.ray import Node
from intsr.runtime.cluster.run import _as_planned, _shape


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ray-actors", "2"], "--ray-actors: has no effect without --ray; give --ray too, or leave it out"),
        (["--gpus-per-actor", "1"], "--gpus-per-actor: has no effect without --ray; give --ray too, or leave it out"),
        (["--ray=auto", "--cpus-per-actor", "0"], "Invalid value for '--cpus-per-actor': 0 is not in the range x>=1"),
        (
            ["--ray=auto", "--gpus-per-actor", "-1"],
            "Invalid value for '--gpus-per-actor': -1.0 is not in the range x>=0",
        ),
        (["--ray=auto", "--gpus-per-actor", "1"], "has no effect: the engine, for target onnxruntime, needs no GPU"),
        (["--ray=auto", "--device", "cuda:1"], "--device: cuda:1 together with --ray; expected no number"),
        (["--ray=ray://head:10001"], "--ray: ray://head:10001 is Ray Client; expected HOST:PORT, auto or local"),
        (["--ray=auto", "-o", "-"], "-o -: together with --ray; expected one of them"),
        (["-o", "s3://bucket/x/"], "-o: s3://bucket/x/ is an address; expected a path"),
        (["--ray", "-o", "memory://x/"], "-o: memory://x/: workers cannot write to memory"),
        (
            ["--ray", "-o", "file:///large/%04d.png"],
            "-o: file:///large/%04d.png: numbered pictures; expected a folder",
        ),
        (["--ray", "-o", "nonsense://x/"], "-o: nonsense://x/: Protocol not known: nonsense; install"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused_in_one_line(
    upscale, photo_path: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    output = [] if "-o" in options else ["-o", tmp_path / "large.png"]
    code, out, err = upscale(photo_path, *output, *options)
    assert (code, out) == (2, "")
    assert err.startswith("intsr: error: ") and expected in err and err.count("\n") == 1


def test_an_engine_behind_ray_was_not_meant_for_an_address(intsr, identity_engine: Path, photo_path: Path) -> None:
    code, _, err = intsr("upscale", "--ray", identity_engine, photo_path, photo_path, "-o", "x/")
    assert code == 2 and f"--ray: {identity_engine} is a file" in err and "write --ray=auto" in err


def test_without_the_extra_one_line_says_which_it_is(
    upscale, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = upscale(photo_path, "-o", tmp_path / "large.png", "--ray")
    expected = 'intsr: error: --ray: ray is not installed; install it with: pip install "intsr[ray]"\n'
    assert (code, out, err) == (2, "", expected)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, str]]:
    """One that listens, and its address."""
    monkeypatch.setattr(cluster_ray, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_an_address_that_is_no_cluster_is_told_at_once(
    upscale, photo_path: Path, tmp_path: Path, server: tuple[socket.socket, str], answer: bytes | None
) -> None:
    listening, address = server
    held = []

    def serve() -> None:
        connection, _ = listening.accept()
        held.append(connection)
        if answer is not None:
            connection.sendall(answer)
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    code, out, err = upscale(photo_path, "-o", tmp_path / "large.png", "--ray", address)
    thread.join()
    held[0].close()
    why = "cannot be reached (timed out)" if answer is None else "answers, but is no Ray cluster"
    expected = "expected HOST:PORT of a Ray cluster's head node; look it up there with: ray status"
    assert (code, out, err) == (2, "", f"intsr: error: --ray: {address} {why}; {expected}\n")


def test_a_port_where_nobody_listens_is_told_at_once(
    upscale, photo_path: Path, tmp_path: Path, server: tuple[socket.socket, str]
) -> None:
    listening, address = server
    listening.close()
    code, _, err = upscale(photo_path, "-o", tmp_path / "large.png", "--ray", address)
    assert code == 2 and err.startswith(f"intsr: error: --ray: {address} cannot be reached (Connection refused); ")


def test_the_address_is_the_options_else_the_environments_else_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_options(None, None, None, None) is None
    assert cluster_options("", None, None, None) == ClusterOptions(address="local")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_options("", None, None, None) == ClusterOptions(address="head:6379")
    assert cluster_options("auto", 3, 2, 0.5) == ClusterOptions(
        address="auto", actors=3, cpus_per_actor=2, gpus_per_actor=0.5
    )


def test_an_address_is_planned_as_a_folder_and_pictures_are_not_looked_at(
    upscale, photo_path: Path, tmp_path: Path
) -> None:
    address = f"file://{tmp_path}/large/"
    code, out, err = upscale(tmp_path, "-o", address, "--ray", "--dry-run", "--format", "webp")
    assert code == 0, err
    assert out.startswith(f"{photo_path} -> {address}photo.webp (142x106; ")
    code, out, _ = upscale(photo_path, "-o", f"file://{tmp_path}/large.png", "--ray", "--dry-run")
    assert code == 0 and out.startswith(f"{photo_path} -> file://{tmp_path}/large.png (")


def test_what_is_at_an_address_is_listed_and_not_replaced_without_a_word(
    upscale, photo_path: Path, tmp_path: Path
) -> None:
    place = tmp_path / "large"
    place.mkdir()
    (place / "photo.png").write_bytes(b"earlier")
    address = f"file://{place}"
    assert RemoteOutputs(address).existing() == RemoteOutputs(address + "/").existing() == {f"{address}/photo.png"}
    assert RemoteOutputs(f"{address}/photo.png").existing() == {f"{address}/photo.png"}
    assert RemoteOutputs(f"{address}/nothing/").existing() == set()
    code, _, err = upscale(photo_path, "-o", f"{address}/", "--ray")
    expected = f"intsr: error: {address}/photo.png: already exists; give --skip-existing or --overwrite\n"
    assert (code, err) == (2, expected)
    # Nothing to do: no cluster is asked for.
    code, _, err = upscale(photo_path, "-o", f"{address}/", "--ray=nowhere.invalid:1", "--skip-existing")
    assert (code, err) == (0, f"{photo_path}: {address}/photo.png is there already\n")
    assert (place / "photo.png").read_bytes() == b"earlier"


def test_a_file_is_at_its_address_as_a_whole_and_parts_of_lost_workers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "made.png").write_bytes(b"picture")
    outputs = remote_outputs(f"file://{tmp_path}/out/", on_cluster=True)
    assert outputs is not None
    jobs = [outputs.folder / "deep" / "a.png", outputs.folder / "b.png"]
    send_file(tmp_path / "made.png", outputs.of(jobs[0]))
    (tmp_path / "out" / ".b.png.part").write_bytes(b"pic")
    (tmp_path / "out" / ".other.png.part").write_bytes(b"somebody else's")
    outputs.remove_parts(jobs)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"deep/a.png", ".other.png.part"}
    assert (tmp_path / "out" / "deep" / "a.png").read_bytes() == b"picture"


def test_object_stores_get_a_file_in_one_piece_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    class Store:
        def put_file(self, path: str, place: str) -> None:
            asked.append(("put", path, place))

    monkeypatch.setattr(addresses, "_opened", lambda address: (Store(), address.partition("://")[2]))
    send_file(Path("a.png"), "s3://bucket/large/a.png")
    assert asked == [("put", "a.png", "bucket/large/a.png")]


def test_a_picture_that_cannot_be_sent_fails_alone_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = RemoteOutputs("s3://bucket/large")
    jobs = [Job(Path(f"{name}.png"), outputs.folder / f"{name}.png") for name in "ab"]

    def reports(local: Any) -> Iterator[FileReport]:
        for job in local:
            job.output.parent.mkdir()
            job.output.write_bytes(b"picture")
            yield FileReport(str(job.source), str(job.output), "ok", 2, 2)

    def send(path: Path, address: str) -> None:
        assert path.read_bytes() == b"picture"
        if address.endswith("a.png"):
            raise PermissionError("Access Denied")

    monkeypatch.setattr(addresses, "send_file", send)
    bad, good = (report.renamed(outputs.named) for report in outputs.uploaded(jobs, reports))
    assert (bad.status, bad.error) == ("failed", "s3://bucket/large/a.png: cannot be written (Access Denied)")
    assert (good.status, good.output) == ("ok", "s3://bucket/large/b.png")


def test_reports_call_files_as_the_user_does() -> None:
    job = Job(Path("a.png"), Path("out/a.png"))
    error = "/home/me/a.png: too large for /home/me/out/a.png"
    report = FileReport("/home/me/a.png", "/home/me/out/a.png", "failed", error=error)
    assert _as_planned(report, job) == FileReport(
        "a.png", "out/a.png", "failed", error="a.png: too large for out/a.png"
    )


def _node(cpus: int, gpus: float = 0.0, key: str = "") -> Node:
    return Node(key or f"{cpus}-{gpus}", f"node{cpus}", cpus, gpus, 1 << 34)


@pytest.mark.parametrize(
    ("nodes", "options", "gpu", "expected"),
    [
        ([_node(1), _node(1, key="second")], {}, False, (2, 1, 0.0)),
        ([_node(8), _node(3), _node(0)], {}, False, (5, 2, 0.0)),
        ([_node(8), _node(3)], {"cpus_per_actor": 4}, False, (2, 4, 0.0)),
        ([_node(16, 2), _node(16)], {}, True, (2, 2, 1.0)),
        ([_node(16, 2)], {"gpus_per_actor": 0.5}, True, (4, 2, 0.5)),
        ([_node(8)], {"actors": 3}, False, (3, 2, 0.0)),
        ([], {"actors": 3}, True, (3, 2, 1.0)),
    ],
)
def test_as_many_workers_as_the_nodes_have_room_for(
    nodes: list[Node], options: dict[str, Any], gpu: bool, expected: tuple[int, int, float]
) -> None:
    shape = _shape(replace(ClusterOptions(address="auto"), **options), nodes, gpu)
    assert (shape.actors, shape.cpus, shape.gpus) == expected


def test_workers_that_fit_nowhere_are_refused_naming_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no node has 9 CPUs and 0 GPUs \(node8: 8 CPUs, 0 GPUs\); give --cpus"):
        _shape(ClusterOptions(address="auto", cpus_per_actor=9), [_node(8)], gpu=False)
    with pytest.raises(UsageError, match="no node has 2 CPUs and 1 GPUs"):
        _shape(ClusterOptions(address="auto"), [_node(8)], gpu=True)


def test_an_engine_is_found_by_its_digest_wherever_it_lies(
    identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digest = engine_digest(identity_engine)
    assert found_engine(identity_engine, digest) == identity_engine
    assert found_engine(identity_engine, "0" * 64) is None
    (tmp_path / "other.engine").write_bytes(b"no engine")
    assert found_engine(tmp_path / "other.engine", digest) is None
    assert not facts_of_node(str(tmp_path / "other.engine"), digest).has_engine
    assert keep_engine(identity_engine.read_bytes(), digest) == kept_engine(digest)
    assert found_engine(tmp_path / "other.engine", digest) == kept_engine(digest)
    facts = facts_of_node(str(tmp_path / "other.engine"), digest)
    assert facts.has_engine and not facts.problem
