"""Builds in a child process: whatever happens to the builder, the parent gets a report or one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intsr.cli.console import detail
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import EXIT_OUT_OF_MEMORY, BuildError, UsageError
from intsr.files import atomic_path

LOG_TAIL_LINES = 60


class BuildOutOfMemoryError(BuildError):
    """A build that needed more memory than there is."""

    exit_code = EXIT_OUT_OF_MEMORY


@dataclass(frozen=True, slots=True)
class Build:
    """One graph to be built."""

    onnx_path: Path
    plan_path: Path
    options: BuildOptions

    def to_mapping(self, plan_path: Path) -> dict[str, Any]:
        """plan_path: where the child writes."""
        paths = {"onnx_path": str(self.onnx_path.resolve()), "plan_path": str(plan_path.resolve())}
        return {**paths, "options": self.options.to_mapping()}


def build_in_child(module: str, onnx_path: Path, plan_path: Path, options: BuildOptions) -> BuildReport:
    """Run `build(onnx_path, plan_path, options)` of `module` in a process of its own.

    The plan appears whole or not at all; Ctrl-C kills the child. With -v, the end of a failed build's log is shown.
    Raises BuildError, UsageError (no such ONNX file).
    """
    (report,) = build_each_in_child(module, [Build(onnx_path, plan_path, options)])
    return report


def build_each_in_child(module: str, builds: Sequence[Build]) -> list[BuildReport]:
    """As `build_in_child`, one after the other in the same process; all plans appear or none."""
    for build in builds:
        if not build.onnx_path.is_file():
            raise UsageError(build.onnx_path, "no such file", "an ONNX network")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="intsr-build-"))
        plans = [stack.enter_context(atomic_path(build.plan_path)) for build in builds]
        job, result, log = (Path(folder) / name for name in ("job.json", "result.json", "log.txt"))
        values = {
            "module": module,
            "builds": [build.to_mapping(plan) for build, plan in zip(builds, plans, strict=True)],
            "result_path": str(result),
            "parent": os.getpid(),
        }
        job.write_text(json.dumps(values), encoding="utf-8")
        exit_code = _run(job, log)
        try:
            return _reports(exit_code, result, plans, builds)
        except BuildError:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
            detail("\n".join([f"end of the log of building {builds[0].onnx_path.name}:", *tail]))
            raise


def _run(job: Path, log: Path) -> int:
    """The child's exit code, negative for a signal. Any exception here, Ctrl-C too, kills the child."""
    with log.open("wb") as output:
        # Its own session: a Ctrl-C in the terminal reaches the parent alone, which then ends the whole group.
        child = subprocess.Popen(
            [sys.executable, "-m", "intsr.engines.builders.worker", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait()
        except BaseException:
            # It may have ended by itself in this very moment.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise


def _reports(exit_code: int, result: Path, plans: Sequence[Path], builds: Sequence[Build]) -> list[BuildReport]:
    values = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    # The graph that was being built when it ended; what was not even begun is the first.
    onnx_path = builds[min(len(values.get("reports", ())), len(builds) - 1)].onnx_path
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        if -exit_code == signal.SIGKILL:
            got = f"the builder was killed ({name}), most likely for want of memory"
            raise BuildOutOfMemoryError(onnx_path, got, fix="close other programs, or build a smaller tile")
        raise BuildError(onnx_path, f"the builder crashed ({name})", fix="run again with -v to see its log")
    if "error" in values:
        raise _error(values["error"], onnx_path)
    reports = [BuildReport.from_mapping(report) for report in values.get("reports", ())]
    if exit_code != 0 or len(reports) != len(builds):
        got = f"the builder ended with code {exit_code} and no report"
        raise BuildError(onnx_path, got, fix="run again with -v to see its log")
    for report, plan, build in zip(reports, plans, builds, strict=True):
        if plan.stat().st_size != report.plan_bytes:
            raise BuildError(build.onnx_path, f"the plan has {plan.stat().st_size} bytes", f"{report.plan_bytes}")
    return reports


def _error(values: dict[str, Any], onnx_path: Path) -> BuildError:
    if values["out_of_memory"]:
        return BuildOutOfMemoryError(onnx_path, "out of memory", fix="close other programs, or build a smaller tile")
    if "where" not in values:
        return BuildError(onnx_path, f"the build failed ({values['got']})", fix="run again with -v to see its log")
    error = BuildError(values["where"], values["got"], values["expected"], values["fix"])
    error.exit_code = values["exit_code"]
    return error
