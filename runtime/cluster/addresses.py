"""Outputs that are no local files: planned as if they were, made in a temporary folder, and sent to their address.

-o s3://bucket/large    planned below the relative folder `s3:/bucket/large`, which is nowhere
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intsr.errors import UsageError, printable
from intsr.optional import require
from intsr.runtime.batch.files import FileReport
from intsr.runtime.batch.jobs import Job
from intsr.runtime.films.names import is_sequence

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://\S")
# A file is there as a whole once it is sent, or not at all.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "tos", "r2"})
# What only this process sees, or nobody can write to.
_UNFIT = frozenset({"memory", "data", "zip", "tar", "libarchive", "reference", "http", "https", "git", "github"})
_PART = ".part"
# While the next picture is computed.
_SENT_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class RemoteOutputs:
    """The folder, or the one file, at an address of fsspec."""

    address: str

    @property
    def folder(self) -> Path:
        """What `-o` would be on this machine: outputs of jobs lie below it."""
        return Path(self.address)

    def of(self, output: Path) -> str:
        """Return the address of a job's output."""
        below = output.relative_to(self.folder).as_posix()
        return self.address.rstrip("/") + ("" if below == "." else f"/{below}")

    def named(self, text: str) -> str:
        """Call outputs by their address in a text for people."""
        return text.replace(str(self.folder), self.address.rstrip("/"))

    def existing(self) -> set[str]:
        """List the addresses that are there, in one request of a folder. Raises UsageError."""
        system, root = _opened(self.address)
        system.invalidate_cache()
        try:
            found = [root] if system.isfile(root) else system.find(root)
        except FileNotFoundError:
            return set()
        except Exception as error:  # Each store has kinds of its own.
            raise UsageError(
                "-o", f"{self.address} cannot be listed ({_line(error)})", fix="look at its rights"
            ) from error
        start = self.address.rstrip("/")
        return {start + name.removeprefix(root.rstrip("/")) for name in found}

    def uploaded(
        self, jobs: Sequence[Job], reports: Callable[[Sequence[Job]], Iterator[FileReport]]
    ) -> Iterator[FileReport]:
        """Yield the reports of jobs that are made in a temporary folder, once each picture has been sent."""
        with tempfile.TemporaryDirectory(prefix="intsr-send-") as folder, ThreadPoolExecutor(_SENT_AT_ONCE) as pool:
            local = [replace(job, output=Path(folder, str(index), job.output.name)) for index, job in enumerate(jobs)]
            sent: list[Future[FileReport]] = [
                pool.submit(self._sent, report, made.output, job.output)
                for report, made, job in zip(reports(local), local, jobs, strict=True)
            ]
            for future in sent:
                yield future.result()

    def _sent(self, report: FileReport, made: Path, output: Path) -> FileReport:
        error = report.error and report.error.replace(str(made), str(output))
        if report.status == "ok":
            try:
                send_file(made, self.of(output))
            except Exception as failure:  # Each store has kinds of its own.
                error = printable(f"{output}: cannot be written ({_line(failure)})")
                return FileReport(report.input, str(output), "failed", error=error)
            finally:
                made.unlink(missing_ok=True)
        return replace(report, output=str(output), error=error)

    def remove_parts(self, outputs: Sequence[Path]) -> None:
        """Remove what workers that were lost left of `send_file`."""
        if _is_object_store(self.address):
            return
        wanted = {_part_of(self.of(output)) for output in outputs}
        system, _ = _opened(self.address)
        for address in self.existing() & wanted:
            system.rm_file(_opened(address)[1])


def remote_outputs(output: str, on_cluster: bool) -> RemoteOutputs | None:
    """output: of `-o`. Return None where it is a path of this machine. Raises UsageError, MissingLibraryError."""
    if not _ADDRESS.match(output):
        return None
    if not on_cluster:
        raise UsageError("-o", f"{output} is an address", "a path", "addresses are for workers of a cluster: --ray")
    protocol = output.partition(":")[0]
    if protocol in _UNFIT:
        raise UsageError("-o", f"{output}: workers cannot write to {protocol}", "such as s3://BUCKET/FOLDER/")
    if is_sequence(Path(output)):
        raise UsageError("-o", f"{output}: numbered pictures", "a folder or a film at an address, or a path")
    _opened(output)
    return RemoteOutputs(output)


def send_file(path: Path, address: str) -> None:
    """Copy a file to an address, where it then is as a whole, or not at all. Raises what the store raises."""
    system, place = _opened(address)
    if _is_object_store(address):
        system.put_file(str(path), place)
        return
    system.makedirs(system._parent(place), exist_ok=True)
    part = _opened(_part_of(address))[1]
    system.put_file(str(path), part)
    system.mv(part, place)


def _is_object_store(address: str) -> bool:
    return address.partition(":")[0] in _OBJECT_STORES


def _part_of(address: str) -> str:
    folder, _, name = address.rpartition("/")
    # The same for each try: one that was lost is overwritten by the next.
    return f"{folder}/.{name}{_PART}"


def _opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and what it calls the place. Raises UsageError, MissingLibraryError."""
    fsspec = require("fsspec", "-o with an address")
    try:
        system, place = fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError("-o", f"{address}: {_line(error)}", fix="install what fsspec needs for it") from error
    return system, place


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
