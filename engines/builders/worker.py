"""The child of `child.build_each_in_child`: `python -m intsr.engines.builders.worker JOB.json` runs builds.

JOB.json: module, builds, result_path, parent. The result is JSON too, written after every build: {"reports": [..]},
with "error" for the one that failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from intsr.engines.builders.types import Build, BuildReport
from intsr.errors import IntsrError
from intsr.json_files import from_plain
from intsr.memory import peak_resident_bytes

_PR_SET_PDEATHSIG = 1


def main(job_path: Path) -> int:
    """Run the job; 0 where every build has its report."""
    job = json.loads(job_path.read_text(encoding="utf-8"))
    _die_with_parent(job["parent"])
    result: dict[str, Any] = {"reports": []}
    result_path = Path(job["result_path"])
    try:
        build = import_module(job["module"]).build
        for one in from_plain(job["builds"], list[Build], job_path):
            report: BuildReport = build(one.onnx_path, one.plan_path, one.options)
            result["reports"].append(asdict(replace(report, peak_bytes=peak_resident_bytes())))
            result_path.write_text(json.dumps(result), encoding="utf-8")
    except BaseException as error:
        # Anything at all, so that the parent can say it in one line; the log keeps the traceback.
        traceback.print_exc()
        result["error"] = _error(error)
        result_path.write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


def _error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, IntsrError):
        return {name: getattr(error, name) for name in ("where", "got", "expected", "fix", "exit_code")}
    if isinstance(error, MemoryError):
        return {"out_of_memory": True}
    return {"got": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}


def _die_with_parent(parent: int) -> None:
    """A parent that is killed takes this process with it, instead of leaving a build of gigabytes behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
