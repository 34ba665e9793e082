"""The real Triton Inference Server: on free ports, asked through its own clients, stopped by its own process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_STARTING_S = 120


def triton_environment() -> Path:
    """The environment that `make test-slow` makes beside this one: what Triton's packages pin is not what we need."""
    folder = Path(os.environ.get("INTSR_TRITON_ENV", _ROOT / "build" / "triton"))
    if not _site_packages(folder).joinpath("pytriton").is_dir():
        pytest.skip(f"no Triton in {folder}: make build/triton")
    if not list(Path("/usr/lib").glob("*/libpython3.11.so.1.0")):
        pytest.skip("Triton's Python backend needs libpython3.11, which is not installed")
    return folder


def _site_packages(environment: Path) -> Path:
    return environment / "lib" / "python3.11" / "site-packages"


def write_python(path: Path) -> Path:
    """A Python that finds what this one finds: the server passes no PYTHONPATH on."""
    path.write_text(f'#!/bin/sh\nPYTHONPATH={os.environ.get("PYTHONPATH", "")} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def copy_backend(environment: Path, folder: Path) -> Path:
    """Triton's Python backend with the stub for Python 3.11 and its NumPy, in a folder of backends."""
    server = _site_packages(environment) / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends" / "python", folder / "python")
    stub = folder / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / "3.11" / stub.name, stub)
    stub.chmod(0o755)
    for name in ("numpy", "numpy.libs"):
        (folder / "python" / name).symlink_to(_site_packages(environment) / name)
    return folder


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class TritonServer:
    """A server of a repository; a context manager. folder: for its backend and its log."""

    def __init__(self, repository: Path, folder: Path, options: Sequence[str] = ()) -> None:
        self.environment, self.log_path = triton_environment(), folder / "triton.log"
        backends = folder / "backends"
        if not backends.exists():
            copy_backend(self.environment, backends)
        self.ports = {name: _free_port() for name in ("http", "grpc", "metrics")}
        binary = _site_packages(self.environment) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        places = [f"--{name}-address=127.0.0.1" for name in self.ports]
        places += [f"--{name}-port={port}" for name, port in self.ports.items()]
        # A killed stub leaves its shared memory.
        self.shared_memory = f"intsr-test-{self.ports['http']}-"
        places += [f"--backend-config=python,shm-region-prefix-name={self.shared_memory}"]
        libraries = str(_site_packages(self.environment) / "nvidia_pytriton.libs")
        command = [binary, f"--model-repository={repository}", f"--backend-directory={backends}", *places]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *command,
                    "--exit-on-error=false",
                    "--disable-auto-complete-config",
                    "--exit-timeout-secs=5",
                    *options,
                ],
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> TritonServer:
        limit = time.monotonic() + _STARTING_S
        while not self.answers("/v2/health/live"):
            assert self.process.poll() is None and time.monotonic() < limit, self.log_path.read_text()[-3000:]
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for path in self.regions():
            path.unlink()

    def regions(self) -> list[Path]:
        """Shared memory of the backend."""
        return list(Path("/dev/shm").glob(f"{self.shared_memory}*"))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.ports['http']}{path}"

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, path: str) -> Any:
        return self._json(urllib.request.Request(self.url(path), b"", method="POST"))

    def statistics(self, model: str) -> dict[str, int]:
        """Such as `inference_count` and `execution_count`: pictures, and calls of the model."""
        (found,) = self._json(urllib.request.Request(self.url(f"/v2/models/{model}/stats")))["model_stats"]
        return {name: int(value) for name, value in found.items() if name.endswith("_count")}

    def _json(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def models(self) -> dict[str, dict[str, str]]:
        """Name -> `state`, and `reason` where there is one."""
        return {model["name"]: model for model in self.post("/v2/repository/index")}

    def ask(self, requests: Sequence[dict[str, Any]], threads: int = 1) -> list[dict[str, Any]]:
        """Send requests as `triton_requests.py` describes them, so many at a time."""
        plan = {"ports": self.ports, "threads": threads, "requests": requests}
        script = Path(__file__).with_name("triton_requests.py")
        return list(run_in(self.environment, script, json.dumps(plan)))

    def stubs(self) -> list[int]:
        """Processes of the backend, one for each instance of a model."""
        return children_of(self.process.pid)

    def workers(self) -> list[int]:
        """Processes that have the engines."""
        return [worker for stub in self.stubs() for worker in children_of(stub)]


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_in(environment: Path, script: Path, text: str) -> Any:
    """Run a script with Triton's own Python: text to its stdin, JSON from its stdout."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "bin" / "python", script], input=text, env=outside, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
