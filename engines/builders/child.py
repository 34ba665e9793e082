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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intsr.cli.console import detail
from intsr.engines.builders.types import Build, BuildReport
from intsr.errors import BuildError, IntsrError, OutOfMemoryError, UsageError
from intsr.files import atomic_path
from intsr.json_files import from_plain

LOG_TAIL_LINES = 60
_SEE_LOG, _SMALLER = "run again with -v to see its log", "close other programs, or build a smaller tile"


def build_each_in_child(module: str, builds: Sequence[Build]) -> list[BuildReport]:
    """Run `build(onnx_path, plan_path, options)` of `module` for each, one after the other in a process of its own.

    All plans appear, each whole, or none; Ctrl-C kills the child. With -v, the end of a failed build's log is shown.
    Raises BuildError, OutOfMemoryError, UsageError (no such ONNX file).
    """
    for build in builds:
        if not build.onnx_path.is_file():
            raise UsageError(build.onnx_path, "no such file", "an ONNX network")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="intsr-build-"))
        plans = [stack.enter_context(atomic_path(build.plan_path)) for build in builds]
        job, result, log = (Path(folder) / name for name in ("job.json", "result.json", "log.txt"))
        values = {
            "module": module,
            "builds": [
                asdict(build) | {"onnx_path": build.onnx_path.resolve(), "plan_path": plan.resolve()}
                for build, plan in zip(builds, plans, strict=True)
            ],
            "result_path": result,
            "parent": os.getpid(),
        }
        job.write_text(json.dumps(values, default=str), encoding="utf-8")
        exit_code = _run(job, log)
        try:
            return _reports(exit_code, result, plans, builds)
        except IntsrError:
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
    found = values.get("reports", [])
    # The graph that was being built when it ended; what was not even begun is the first.
    onnx_path = builds[min(len(found), len(builds) - 1)].onnx_path
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        if -exit_code == signal.SIGKILL:
            got = f"the builder was killed ({name}), most likely for want of memory"
            raise OutOfMemoryError(onnx_path, got, fix=_SMALLER)
        raise BuildError(onnx_path, f"the builder crashed ({name})", fix=_SEE_LOG)
    if "error" in values:
        raise _error(values["error"], onnx_path)
    if exit_code != 0 or len(found) != len(builds):
        raise BuildError(onnx_path, f"the builder ended with code {exit_code} and no report", fix=_SEE_LOG)
    reports = from_plain(found, list[BuildReport], "build report")
    for report, plan, build in zip(reports, plans, builds, strict=True):
        if plan.stat().st_size != report.plan_bytes:
            raise BuildError(build.onnx_path, f"the plan has {plan.stat().st_size} bytes", f"{report.plan_bytes}")
    return reports


def _error(values: dict[str, Any], onnx_path: Path) -> IntsrError:
    if "out_of_memory" in values:
        return OutOfMemoryError(onnx_path, "out of memory", fix=_SMALLER)
    if "where" not in values:
        return BuildError(onnx_path, f"the build failed ({values['got']})", fix=_SEE_LOG)
    error = BuildError(values["where"], values["got"], values["expected"], values["fix"])
    error.exit_code = values["exit_code"]
    return error
