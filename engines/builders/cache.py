"""Networks that were built before: a build whose inputs are all the same is copied instead of done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.types import Build, BuildReport
from intsr.errors import IntsrError
from intsr.files import atomic_path, check_free_space, check_writable_folder, sha256_from_path
from intsr.json_files import from_plain
from intsr.onnx_files import external_files, read_onnx
from intsr.runtime.backends.compatibility import installed_version, list_devices
from intsr.targets import Target


@dataclass(frozen=True, slots=True)
class PlanCache:
    """A folder of `KEY.plan` and `KEY.json`. on_reuse: told the name of each graph that is not built again.

    A key covers the graph with its weights, the target, its library's version, the GPUs of this machine where plans
    are timed on them, every build option but the timing cache, and our own builder's code. Nothing is ever removed
    from the folder: delete it when it is too large.
    """

    folder: Path
    on_reuse: Callable[[str], None] = lambda name: None

    def build_each(self, target: Target, builds: Sequence[Build]) -> list[BuildReport]:
        """As `build_each_in_child`: all of them from the folder, or all built anew and kept there.

        Raises UsageError where the folder cannot be written, and what `build_each_in_child` raises.
        """
        check_writable_folder(self.folder)
        keys = [_key(target, build) for build in builds]
        reports = [self._report(key) for key in keys]
        found = [report for report in reports if report is not None]
        if len(found) == len(builds):
            for key, build in zip(keys, builds, strict=True):
                shutil.copyfile(self._path(key, "plan"), build.plan_path)
                self.on_reuse(build.onnx_path.stem)
            return found
        built = build_each_in_child(target.builder, builds)
        for key, build, report in zip(keys, builds, built, strict=True):
            check_free_space(self.folder, report.plan_bytes)
            with atomic_path(self._path(key, "plan")) as temporary:
                shutil.copyfile(build.plan_path, temporary)
            values = {"sha256": sha256_from_path(build.plan_path), "report": asdict(report)}
            with atomic_path(self._path(key, "json")) as temporary:
                temporary.write_text(json.dumps(values), encoding="utf-8")
        return built

    def _path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def _report(self, key: str) -> BuildReport | None:
        """None where there is none, or the plan is not the one that was kept."""
        path = self._path(key, "json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            report = from_plain(values["report"], BuildReport, path)
            return report if sha256_from_path(self._path(key, "plan")) == values["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, IntsrError):
            return None


def _key(target: Target, build: Build) -> str:
    options = asdict(build.options) | {"timing_cache": None}
    gpus = list(list_devices()[0].values())[1:] if target.times_kernels else []
    facts = [target.name, installed_version(target), gpus, options, _builder_digest()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in (build.onnx_path, *external_files(read_onnx(build.onnx_path), build.onnx_path)):
        digest.update(bytes.fromhex(sha256_from_path(path)))
    return digest.hexdigest()


def _builder_digest() -> str:
    """Of this package's code beside this file: what builds, and what describes the result."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
