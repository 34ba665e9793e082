"""The child of `child.build_in_child`: `python -m intsr.engines.worker JOB.json` runs one target's `build`.

JOB.json: module, onnx_path, plan_path, options, result_path. The result is JSON too: {"report": ..} or {"error": ..}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from intsr.engines.build_types import BuildOptions, BuildReport
from intsr.errors import IntsrError
from intsr.memory import peak_resident_bytes

_PR_SET_PDEATHSIG = 1


def main(job_path: Path) -> int:
    """Run the job; 0 where a report was written."""
    job = json.loads(job_path.read_text(encoding="utf-8"))
    _die_with_parent(job["parent"])
    try:
        options = BuildOptions.from_mapping(job["options"])
        build = import_module(job["module"]).build
        report: BuildReport = build(Path(job["onnx_path"]), Path(job["plan_path"]), options)
        result = {"report": replace(report, peak_bytes=peak_resident_bytes()).to_mapping()}
    except BaseException as error:
        # Anything at all, so that the parent can say it in one line; the log keeps the traceback.
        traceback.print_exc()
        result = {"error": _error(error)}
    Path(job["result_path"]).write_text(json.dumps(result), encoding="utf-8")
    return 0 if "report" in result else 1


def _error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, IntsrError):
        parts = {"where": error.where, "got": error.got, "expected": error.expected, "fix": error.fix}
        return {**parts, "exit_code": error.exit_code, "out_of_memory": False}
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return {"got": text, "out_of_memory": isinstance(error, MemoryError)}


def _die_with_parent(parent: int) -> None:
    """A parent that is killed takes this process with it, instead of leaving a build of gigabytes behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
