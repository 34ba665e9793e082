"""`intsr upscale --ray`: two nodes on this machine make what one process makes, whatever happens to their workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PICTURES, BAD = 200, (3, 50, 99, 150, 196)
# What follows a worker's name in the list of processes is what it does now.
_WORKER = b"ray::MapWorker(MapBatches(Worker))"

pytestmark = pytest.mark.slow


class TwoNodes:
    """Two nodes of one CPU each; `run` is `intsr upscale` beside them, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node())
        self.nodes = [self.cluster.head_node, self.add_node()]
        self.address = self.cluster.address

    def _node(self) -> dict[str, Any]:
        return {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}

    def add_node(self, **environment: str) -> Any:
        return self.cluster.add_node(**self._node(), env_vars=environment)

    def start(self, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "intsr", "upscale", *map(str, arguments)]
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        process = self.start(*arguments, "--ray", self.address)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def workers(self) -> list[int]:
        """Process ids of the actors of these nodes."""
        raylets = {info.process.pid for node in self.nodes for info in node.all_processes["raylet"]}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent in raylets and name.startswith(_WORKER):
                found.append(int(entry.name))
        return found

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.workers():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    # Short: the names of sockets below it have a limit.
    folder = Path(tempfile.mkdtemp(prefix="intsr-ray-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(path) for path in sys.path if path))  # noqa: PTH100
        nodes = TwoNodes(folder)
        try:
            yield nodes
        finally:
            nodes.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Path]) -> Path:
    return make_engine("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("pictures")
    pixels = astronaut()
    for index in range(PICTURES):
        path = folder / f"{index:03}.png"
        Image.fromarray(np.ascontiguousarray(pixels[index : index + 40, index : index + 50])).save(path)
        if index in BAD:
            path.write_bytes(path.read_bytes()[:500] if index % 2 else b"no picture")
    return folder


@pytest.fixture(scope="module")
def alone(two_nodes: TwoNodes, engine: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    process = two_nodes.start(engine, pictures, "-o", f"{folder}/", "--json")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _assert_complete(out: str, err: str, pictures: Path) -> None:
    """Every picture was reported once, the bad ones as failed, by their names."""
    reports = {report["input"]: report for report in map(json.loads, out.splitlines())}
    assert len(out.splitlines()) == len(reports) == PICTURES
    failed = {name for name, report in reports.items() if report["status"] == "failed"}
    assert failed == {str(pictures / f"{index:03}.png") for index in BAD}
    assert sum(report["status"] == "ok" for report in reports.values()) == PICTURES - len(BAD)
    lines = [line for line in err.splitlines() if line.startswith("intsr: error: ")]
    assert sorted(line.split(": ")[2] for line in lines) == sorted(failed)
    assert "Traceback" not in err


def _wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_two_nodes_make_what_one_process_makes_and_a_second_run_makes_nothing(
    two_nodes: TwoNodes, engine: Path, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    code, out, err = two_nodes.run(engine, pictures, "-o", f"{tmp_path}/", "--json")
    assert code == 1, err
    _assert_complete(out, err, pictures)
    # Nothing of Ray's own: a line for each failure, and the sum.
    # On a slow machine lines say how far it is.
    assert len([line for line in err.splitlines() if not line.startswith("Upscaling: ")]) == len(BAD) + 1
    assert _contents(tmp_path) == _contents(alone)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    code, out, err = two_nodes.run(engine, pictures, "-o", f"{tmp_path}/", "--json", "--skip-existing")
    statuses = [json.loads(line)["status"] for line in out.splitlines()]
    assert code == 1 and statuses.count("skipped") == PICTURES - len(BAD)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_a_worker_that_is_killed_in_the_middle_changes_nothing(
    two_nodes: TwoNodes, engine: Path, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    process = two_nodes.start(engine, pictures, "-o", f"{tmp_path}/", "--json", "--ray", two_nodes.address)
    _wait_for(lambda: len(list(tmp_path.glob("*.png"))) > 20, process)
    os.kill(two_nodes.workers()[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "pictures were lost with their workers" in err
    _assert_complete(out, err, pictures)
    assert _contents(tmp_path) == _contents(alone)


def _holder_of(part: str, workers: list[int]) -> int | None:
    """The worker that writes such a file now."""
    for pid in workers:
        try:
            names = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115
        except OSError:
            continue
        if any(Path(name).name.startswith(part) for name in names):
            return pid
    return None


def test_a_picture_that_ends_every_worker_is_named_and_the_others_are_made(
    two_nodes: TwoNodes, engine: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for path in sorted(pictures.glob("00[012].png")):
        shutil.copy(path, folder)
    Image.fromarray(np.zeros((900, 900, 3), np.uint8)).save(folder / "poison.png")
    process = two_nodes.start(engine, folder, "-o", f"{out}/", "--ray", two_nodes.address)
    for _ in range(3):
        holder = _wait_for(lambda: _holder_of(".poison.png.", two_nodes.workers()), process)
        os.kill(holder, signal.SIGKILL)
        _wait_for(lambda pid=holder: not Path(f"/proc/{pid}").exists(), process)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"intsr: error: {folder / 'poison.png'}: the worker that had it ended, 3 times" in err
    assert sorted(_contents(out)) == ["000.png", "001.png", "002.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at_work", [False, True])
def test_an_interrupt_leaves_no_worker_and_nothing_half_written(
    two_nodes: TwoNodes,
    engine: Path,
    pictures: Path,
    alone: Path,
    tmp_path: Path,
    number: int,
    code: int,
    at_work: bool,
) -> None:
    # Those of an earlier command take a moment to end.
    two_nodes.wait_until_idle()
    process = two_nodes.start(engine, pictures, "-o", f"{tmp_path}/", "--ray", two_nodes.address)
    _wait_for(lambda: len(list(tmp_path.glob("*.png"))) > 5 if at_work else two_nodes.workers(), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    two_nodes.wait_until_idle()
    made, whole = _contents(tmp_path), _contents(alone)
    assert len(made) < len(whole) and made.items() <= whole.items()


def test_an_engine_that_nodes_do_not_see_is_sent_once_and_kept_by_its_digest(
    two_nodes: TwoNodes, engine: Path, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "intsr" / "engines"
    shutil.rmtree(kept, ignore_errors=True)
    # Another folder in each process.
    unseen = Path("/proc/self/cwd") / engine.name
    ages: dict[Path, int] = {}
    for name in ("first", "second"):
        process = two_nodes.start(
            unseen, pictures / "000.png", "-o", f"{tmp_path / name}/", "--ray", two_nodes.address, cwd=engine.parent
        )
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        (sent,) = kept.iterdir()
        assert sent.read_bytes() == engine.read_bytes()
        assert (tmp_path / name / "000.png").read_bytes() == (alone / "000.png").read_bytes()
        # What is there is not written again.
        assert sent.stat().st_mtime_ns == ages.setdefault(sent, sent.stat().st_mtime_ns)


def test_outputs_go_to_an_address_with_the_rules_of_a_folder(
    two_nodes: TwoNodes, engine: Path, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    inputs = [pictures / f"{index:03}.png" for index in range(12)]
    address = f"file://{tmp_path}/large/"
    code, out, err = two_nodes.run(engine, *inputs, "-o", address, "--json", "--suffix", "_x2")
    assert code == 1 and "Traceback" not in err
    reports = [json.loads(line) for line in out.splitlines()]
    wanted = {f"{address}{path.stem}_x2.png" for path in inputs}
    assert {report["output"] for report in reports} == wanted
    made = _contents(tmp_path / "large")
    assert {name.replace("_x2", ""): data for name, data in made.items()} == {
        path.name: (alone / path.name).read_bytes() for path in inputs if int(path.stem) not in BAD
    }
    code, _, err = two_nodes.run(engine, *inputs, "-o", address, "--suffix", "_x2")
    fix = "give --skip-existing or --overwrite"
    assert (code, err) == (2, f"intsr: error: {address}000_x2.png: already exists and 10 more; {fix}\n")
    (tmp_path / "large" / "001_x2.png").unlink()
    code, out, _ = two_nodes.run(engine, *inputs, "-o", address, "--json", "--suffix", "_x2", "--skip-existing")
    statuses = {report["output"]: report["status"] for report in map(json.loads, out.splitlines())}
    assert code == 1 and [name for name, status in statuses.items() if status == "ok"] == [f"{address}001_x2.png"]
    assert _contents(tmp_path / "large") == made


def _fake_package(folder: Path, name: str, text: str) -> str:
    """A search path on which this package is what the text says."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])


@pytest.mark.parametrize(
    ("package", "text", "expected"),
    [
        ("intsr", "raise ModuleNotFoundError('no', name='intsr')", "intsr cannot be imported; install"),
        ("pyarrow", "raise ModuleNotFoundError('no', name='pyarrow')", "pyarrow cannot be imported; install"),
        ("openvino", "raise ModuleNotFoundError('no', name='openvino')", "openvino cannot be imported; install"),
        ("", "", "another version of intsr; expected the one of this machine; install the same on all nodes"),
    ],
    ids=["no-intsr", "no-extra", "no-library", "other-version"],
)
def test_a_node_that_cannot_work_is_named_in_one_line(
    two_nodes: TwoNodes, engine: Path, photo_path: Path, tmp_path: Path, package: str, text: str, expected: str
) -> None:
    fake = tmp_path / "fake"
    path = _fake_package(fake, package, text) if package else _other_version(fake)
    third = two_nodes.add_node(PYTHONPATH=path)
    try:
        code, out, err = two_nodes.run(engine, photo_path, "-o", tmp_path / "large.png")
    finally:
        two_nodes.cluster.remove_node(third)
    assert code in (2, 3) and out == ""
    assert err.startswith("intsr: error: node ") and expected in err and err.count("\n") == 1


def _other_version(folder: Path) -> str:
    """A search path with a copy of this package, one file of which is another one."""
    import intsr
    import intsr.runtime

    package = folder / "intsr"
    shutil.copytree(Path(intsr.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for stage in ("runtime", "kernels"):
        source = Path(intsr.runtime.__file__).parents[1] / stage
        shutil.copytree(source, package / stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "runtime" / "upscaler.py").open("a") as file:
        file.write("\n# another one\n")
    return os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])


def test_a_node_that_goes_away_changes_nothing(
    two_nodes: TwoNodes, engine: Path, pictures: Path, alone: Path, tmp_path: Path
) -> None:
    process = two_nodes.start(engine, pictures, "-o", f"{tmp_path}/", "--json", "--ray", two_nodes.address)
    _wait_for(lambda: len(list(tmp_path.glob("*.png"))) > 20, process)
    two_nodes.cluster.remove_node(two_nodes.nodes.pop(), allow_graceful=False)
    out, err = process.communicate(timeout=300)
    two_nodes.nodes.append(two_nodes.add_node())
    assert process.returncode == 1, err
    _assert_complete(out, err, pictures)
    assert _contents(tmp_path) == _contents(alone)


def test_too_little_memory_is_said_of_each_picture_and_is_the_exit_code(
    two_nodes: TwoNodes, engine: Path, photo_path: Path, tmp_path: Path
) -> None:
    code, _, err = two_nodes.run(engine, photo_path, "-o", tmp_path / "large.png", "--memory", "1M")
    assert code == 4 and "expected at most 1 MiB" in err and err.count("\n") == 1


def test_films_go_through_workers_as_pictures_do(two_nodes: TwoNodes, engine: Path, tmp_path: Path) -> None:
    from films import read_film, scenes, write_film

    films = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for film in films:
        write_film(film, scenes(24, 8))
    code, out, err = two_nodes.run(engine, *films, "-o", f"{tmp_path / 'large'}/", "--json")
    assert code == 0, err
    assert [json.loads(line)["film"]["frames"] for line in out.splitlines()] == [32, 32]
    for film in films:
        assert read_film(tmp_path / "large" / film.name).times == read_film(film).times
    # Encoders may choose otherwise in each run: the frames themselves.
    process = two_nodes.start(engine, films[0], "-o", tmp_path / "alone" / "%03d.png")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    code, _, err = two_nodes.run(engine, films[0], "-o", tmp_path / "frames" / "%03d.png")
    assert code == 0, err
    assert _contents(tmp_path / "frames") == _contents(tmp_path / "alone") != {}
