from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.engines.builders import child
from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.types import HARDWARE_COMPATIBILITY, Build, BuildOptions, BuildReport
from intsr.errors import BuildError, OutOfMemoryError, UsageError
from intsr.json_files import from_plain

OPTIONS = BuildOptions("cpu", workspace_bytes=12345)
PRELUDE = """
import os, signal, sys, time
from intsr.engines.builders.types import BuildReport
from intsr.errors import BuildError, MissingLibraryError
def build(onnx_path, plan_path, options):
"""


@pytest.fixture
def fake_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """fake_builder(body) -> name of a module whose `build` has that body."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(body: str) -> str:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "fake_builder.py").write_text(PRELUDE + lines)
        return "fake_builder"

    return write


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"graph")
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "network.plan"


def build_one(module: str, onnx_path: Path, output: Path) -> BuildReport:
    (report,) = build_each_in_child(module, [Build(onnx_path, output, OPTIONS)])
    return report


WHOLE = """plan_path.write_bytes(onnx_path.read_bytes() * 2)
print(options)
return BuildReport(1.0, 10, 0, "fake", "1", "sm86+", {"kernels": options.workspace_bytes})"""


def test_builds_of_one_child_give_their_plans_and_reports(fake_builder, onnx_path: Path, output: Path) -> None:
    module = fake_builder(WHOLE.replace('"1", "sm86+"', 'str(os.getpid()), "sm86+"'))
    plans = [output, output.with_name("second.plan")]
    reports = build_each_in_child(module, [Build(onnx_path, plan, OPTIONS) for plan in plans])
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == dict.fromkeys(plans, b"graphgraph")
    assert len({report.library_version for report in reports}) == 1
    assert (reports[0].gpu_architecture, reports[0].plan) == ("sm86+", {"kernels": 12345})


def test_peak_memory_is_that_of_the_child_alone(fake_builder, onnx_path: Path, output: Path) -> None:
    parents_own = bytearray(300_000_000)
    small = build_one(fake_builder(WHOLE), onnx_path, output).peak_bytes
    big = build_one(fake_builder("x = bytearray(150_000_000)\n" + WHOLE), onnx_path, output).peak_bytes
    assert len(parents_own) > small > 1_000_000
    assert big - small == pytest.approx(150_000_000, rel=0.1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("plan_path.write_bytes(b'half')\nraise ValueError('two\\nlines')", r"failed \(ValueError: two lines\)"),
        ("raise BuildError('node 3', 'is odd', 'even', 'turn it')", "^node 3: is odd; expected even; turn it$"),
        ("raise MissingLibraryError('tensorrt', 'tensorrt', 'here')", r"pip install \"intsr\[tensorrt\]\""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("os._exit(7)", "ended with code 7 and no report"),
        ("plan_path.write_bytes(b'12345')\nreturn BuildReport(1.0, 10, 0, 'fake', '1')", "5 bytes; expected 10"),
    ],
)
def test_every_failure_is_one_line_and_leaves_what_was_there(
    fake_builder, onnx_path: Path, output: Path, body: str, message: str
) -> None:
    output.parent.mkdir()
    output.write_bytes(b"before")
    with pytest.raises(BuildError, match=message) as caught:
        build_one(fake_builder(body), onnx_path, output)
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in output.parent.iterdir()] == [b"before"]


@pytest.mark.parametrize("body", ["raise MemoryError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_want_of_memory_is_an_error_of_its_own(fake_builder, onnx_path: Path, output: Path, body: str) -> None:
    with pytest.raises(OutOfMemoryError, match="memory"):
        build_one(fake_builder(body), onnx_path, output)


def test_a_missing_graph_is_named(onnx_path: Path, output: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        build_one("no_such_builder", onnx_path.with_name("missing.onnx"), output)


SLEEPER = """plan_path.write_bytes(b'half')
(onnx_path.parent / 'pid').write_text(str(os.getpid()))
time.sleep(60)"""
PARENT = """
import sys
from pathlib import Path
from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.types import Build, BuildOptions
build_each_in_child("fake_builder", [Build(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions("cpu"))])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_ends_takes_the_child_with_it(fake_builder, onnx_path: Path, output: Path, sent: int) -> None:
    fake_builder(SLEEPER)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, onnx_path, output], stderr=subprocess.DEVNULL)
    pid_path = onnx_path.parent / "pid"
    _wait_until(lambda: pid_path.exists() and bool(pid_path.read_text()))
    parent.send_signal(sent)
    assert parent.wait(10) != 0
    _wait_until(lambda: not _alive(int(pid_path.read_text())))
    if sent == signal.SIGINT:
        assert list(output.parent.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        # A zombie that nobody has waited for is dead, too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_interrupt_as_the_child_ends_by_itself_is_only_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndedChild:
        pid = 2**22 + 1  # above the kernel's largest process id: no such process

        def __init__(self, *_: object, **__: object) -> None:
            self.waits = 0

        def wait(self) -> int:
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return 0

    monkeypatch.setattr(child.subprocess, "Popen", EndedChild)
    with pytest.raises(KeyboardInterrupt):
        child._run(tmp_path / "job.json", tmp_path / "log")


def test_the_graph_that_failed_is_named_and_no_plan_is_left(fake_builder, tmp_path: Path) -> None:
    graphs = [tmp_path / "good.onnx", tmp_path / "bad.onnx", tmp_path / "later.onnx"]
    for graph in graphs:
        graph.write_bytes(b"graph")
    module = fake_builder(f"if onnx_path.name == 'bad.onnx':\n    os._exit(7)\n{WHOLE}")
    builds = [Build(graph, tmp_path / "out" / f"{graph.stem}.plan", OPTIONS) for graph in graphs]
    with pytest.raises(BuildError, match=r"bad\.onnx"):
        build_each_in_child(module, builds)
    assert not list((tmp_path / "out").iterdir())


OPTIONS_OF_A_BUILD = st.builds(
    BuildOptions,
    target=st.sampled_from(["cpu", "tensorrt-rtx"]),
    workspace_bytes=st.none() | st.integers(1, 1 << 40),
    hardware_compatibility=st.sampled_from(HARDWARE_COMPATIBILITY),
    timing_cache=st.none() | st.just(Path("folder/timing.cache")),
    detailed=st.booleans(),
)


@given(OPTIONS_OF_A_BUILD)
def test_options_survive_json(options: BuildOptions) -> None:
    assert from_plain(json.loads(json.dumps(asdict(options), default=str)), BuildOptions, "here") == options


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (BuildOptions, {"target": "cpu", "speed": 3}, "unknown field `speed`"),
        (BuildOptions, {"target": "cpu", "hardware_compatibility": "all"}, "hardware_compatibility is 'all'"),
        (BuildOptions, {"target": "cpu", "workspace_bytes": 0}, "workspace_bytes is 0"),
        (BuildReport, asdict(BuildReport(1.0, 1, 1, "x", "1")) | {"plan_bytes": 0}, "nothing was built"),
    ],
)
def test_bad_values_are_one_line(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_plain(values, kind, "here")
