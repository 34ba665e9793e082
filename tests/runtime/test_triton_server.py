"""A repository in the real Triton Inference Server, asked through its own clients over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from triton_server import TritonServer, resident_mib, run_in, triton_environment, write_python

from intsr.runtime.engine import open_engine

pytestmark = pytest.mark.slow
Run = Callable[..., tuple[int, str, str]]
Export = Callable[..., Path]
_SUPPORT, _EXAMPLES = Path(__file__).parents[1] / "support", Path(__file__).parents[2] / "examples"


def _export(engines: Mapping[str, Path], folder: Path, **parameters: str) -> Path:
    """Write a repository with a model for each engine by another process, as somebody would."""
    links = folder / "engines"
    links.mkdir(parents=True)
    for name, path in engines.items():
        (links / f"{name}.engine").symlink_to(path)
    python, repository = write_python(folder / "python"), folder / "models"
    command = [python, "-m", "intsr", "serve-repository", *sorted(links.iterdir()), "-o", repository, "-q"]
    subprocess.run([*command, "--python", python], check=True, timeout=120)
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        for name, value in parameters.items():
            (line,) = (line for line in text.splitlines() if f'key: "{name}"' in line)
            text = text.replace(line, f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}')
        config.write_text(text)
    return repository


@pytest.fixture(scope="module")
def server(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Models `cpu`, `wide`, whose engine takes four tiles at once, and `broken`, whose engine cannot be opened."""
    triton_environment()
    folder = tmp_path_factory.mktemp("triton")
    engines = {"cpu": make_engine("cpu"), "wide": make_engine(batch=4), "broken": make_engine()}
    repository = _export(engines, folder)
    engine = repository / "broken" / "1" / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-300])
    with TritonServer(repository, folder, ["--model-control-mode=explicit", "--load-model=*"]) as server:
        yield server


class Pictures:
    """Requests for pictures of mixed sizes and kinds, and what should come back."""

    def __init__(self, folder: Path, photo: np.ndarray) -> None:
        self.folder, self.photo = folder, photo
        self.requests: list[dict[str, Any]] = []
        self._files: list[Path] = []

    def add(self, count: int, model: str) -> None:
        for index in range(count):
            number, protocol = len(self.requests), ("http", "grpc")[index % 2]
            pixels = self.photo[: 5 + index % 47, : 71 - index % 50]
            kind = ("png", "jpg", "image", "png16", "alpha", "image16", "webp")[index % 7]
            request = {"protocol": protocol, "model": model, "save": str(self.folder / f"{number}.out.npy")}
            if kind.startswith("image"):
                name, array = kind, pixels[None].astype(np.uint16) * 257 if kind == "image16" else pixels[None]
            else:
                name, array = "encoded", self._encoded(self.folder / f"{number}", pixels, kind)
            path = self.folder / f"{number}.npy"
            np.save(path, array)
            self.requests.append(request | {"inputs": {name: str(path)}, "parameters": {"color_fix": "wavelet"}})

    def _encoded(self, stem: Path, pixels: np.ndarray, kind: str) -> np.ndarray:
        path = stem.with_suffix(f".{kind if kind in ('jpg', 'webp') else 'png'}")
        if kind == "png16":
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
        elif kind == "alpha":
            Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path)
        else:
            exif = Image.Exif()
            exif[0x010E] = stem.name
            Image.fromarray(pixels).save(path, exif=exif)
        self._files.append(path)
        return np.frombuffer(path.read_bytes(), np.uint8)[None]

    def assert_equal(self, answers: list[dict[str, Any]], engine: Path, intsr: Run) -> None:
        """Files as `intsr upscale` writes them, arrays as `Engine.upscale` returns them."""
        assert [answer.get("error") for answer in answers] == [None] * len(self.requests)
        big = self.folder / "big"
        assert intsr("upscale", engine, *self._files, "-o", f"{big}/", "--color-fix", "wavelet", "-q")[0] == 0
        files = {int(path.stem): path for path in big.iterdir()}
        with open_engine(engine) as opened:
            for number, request in enumerate(self.requests):
                made = np.load(request["save"])
                if number in files:
                    assert made.tobytes() == files[number].read_bytes(), files[number].name
                else:
                    (source,) = (np.load(path) for path in request["inputs"].values())
                    assert np.array_equal(made[0], opened.upscale(source[0], "wavelet"))


@pytest.mark.parametrize("model", ["cpu", "wide"])
def test_50_requests_at_once_of_mixed_sizes_and_kinds(
    server: TritonServer, make_engine: Callable[..., Path], intsr: Run, photo: np.ndarray, tmp_path: Path, model: str
) -> None:
    pictures = Pictures(tmp_path, photo)
    pictures.add(50, model)
    before = server.statistics(model)
    answers = server.ask(pictures.requests, threads=50)
    after = server.statistics(model)
    assert after["inference_count"] - before["inference_count"] == 50
    # Of different sizes, and handed over together all the same.
    assert after["execution_count"] - before["execution_count"] < 30
    # `wide` against an engine of one tile a run: what is shared changes no bit.
    pictures.assert_equal(answers, make_engine("cpu" if model == "cpu" else "onnxruntime"), intsr)


def test_bad_requests_get_errors_and_the_next_one_works(
    server: TritonServer, photo_path: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    data = np.frombuffer(photo_path.read_bytes(), np.uint8)[None]
    arrays = {
        "whole": data,
        "cut": data[:, :2000],
        "text": data[:, 300:400],
        "image": photo[None],
        "grey": photo[None, ..., :1],
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)

    def request(protocol: str, inputs: Mapping[str, str], **more: Any) -> dict[str, Any]:
        paths = {name: str(tmp_path / f"{file}.npy") for name, file in inputs.items()}
        return {"protocol": protocol, "model": "cpu", "inputs": paths, **more}

    for protocol in ("http", "grpc"):
        requests = [
            request(protocol, {"encoded": "cut"}),
            request(protocol, {"encoded": "text"}),
            request(protocol, {"encoded": "whole", "image": "image"}),
            request(protocol, {"image": "grey"}),
            request(protocol, {"encoded": "whole"}, parameters={"colour": "red"}),
            request(protocol, {"encoded": "whole"}, outputs=["upscaled_image"]),
            request(protocol, {"encoded": "whole"}),
        ]
        answers = server.ask(requests)
        errors = [answer.get("error", "") for answer in answers]
        assert errors[0].startswith("encoded: cannot be read (") and errors[1].startswith("encoded: not a picture")
        assert errors[2].startswith("request: inputs ") and "[-1,-1,-1,3]" in errors[3]
        assert errors[4].startswith("parameter colour: 'red'; expected one of color_fix, outscale")
        assert errors[5].startswith("request: input encoded, but not output upscaled_encoded")
        bad = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
        assert [answer["status"] for answer in answers[:6]] == [bad] * 6
        assert answers[6]["output"] == "upscaled_encoded"


def test_a_model_that_cannot_be_opened_is_not_ready_and_says_why(server: TritonServer) -> None:
    models = server.models()
    assert models["cpu"]["state"] == models["wide"]["state"] == "READY"
    assert models["broken"]["state"] == "UNAVAILABLE" and "model.engine" in models["broken"]["reason"]
    assert server.answers("/v2/models/cpu/ready") and not server.answers("/v2/models/broken/ready")


def _one(server: TritonServer, model: str, array: np.ndarray, folder: Path) -> dict[str, Any]:
    np.save(folder / "one.npy", array)
    inputs = {"image": str(folder / "one.npy")}
    return server.ask([{"protocol": "grpc", "model": model, "inputs": inputs}])[0]


def test_a_killed_engine_is_started_again(server: TritonServer, photo: np.ndarray, tmp_path: Path) -> None:
    before = set(server.workers())
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    for model in ("cpu", "wide"):
        assert _one(server, model, photo[None], tmp_path)["shape"] == [1, 106, 142, 3]
    after = set(server.workers())
    assert len(after) == len(before) and not after & before


def test_requests_of_a_killed_engine_get_errors_and_later_ones_answers(
    server: TritonServer, photo: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "large.npy", np.tile(photo, (12, 12, 1))[None])
    request = {"protocol": "http", "model": "cpu", "inputs": {"image": str(tmp_path / "large.npy")}}
    before = set(server.workers())
    asking = subprocess.Popen(
        [server.environment / "bin" / "python", _SUPPORT / "triton_requests.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        text=True,
    )
    assert asking.stdin is not None
    asking.stdin.write(json.dumps({"ports": server.ports, "threads": 6, "requests": [request] * 6}))
    asking.stdin.close()
    start = {worker: _cpu_ticks(worker) for worker in before}
    while not (busy := [worker for worker in before if _cpu_ticks(worker) > start[worker] + 20]):
        time.sleep(0.02)
    os.kill(busy[0], signal.SIGKILL)
    assert asking.stdout is not None
    answers = json.loads(asking.stdout.read())
    assert asking.wait(60) == 0
    killed = [answer for answer in answers if "was killed by signal 9" in answer.get("error", "")]
    assert killed and {answer["status"] for answer in killed} == {"503"}
    assert all("shape" in answer for answer in answers if answer not in killed)
    assert _one(server, "cpu", photo[None], tmp_path)["shape"] == [1, 106, 142, 3]


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_killed_stub_is_loaded_again_through_the_servers_api(
    server: TritonServer, photo: np.ndarray, tmp_path: Path
) -> None:
    workers = server.workers()
    for stub in server.stubs():
        os.kill(stub, signal.SIGKILL)
    limit = time.monotonic() + 30
    # Their engines end by themselves.
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    for model in ("cpu", "wide"):
        assert "is not healthy" in _one(server, model, photo[None], tmp_path)["error"]
        server.post(f"/v2/repository/models/{model}/unload")
        while server.models()[model]["state"] == "READY":
            time.sleep(0.05)
        server.post(f"/v2/repository/models/{model}/load")
        assert _one(server, model, photo[None], tmp_path)["shape"] == [1, 106, 142, 3]


def test_500_requests_leave_nothing_behind(server: TritonServer, photo: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.tile(photo, (3, 3, 1))[None])
    request = {"protocol": "grpc", "model": "cpu", "inputs": {"image": str(tmp_path / "image.npy")}}

    def resident() -> dict[int, float]:
        return {pid: resident_mib(pid) for pid in (*server.stubs(), *server.workers())}

    server.ask([request] * 100, threads=4)
    before = resident()
    answers = server.ask([request] * 500, threads=4)
    assert all("shape" in answer for answer in answers)
    grown = {pid: mib - before[pid] for pid, mib in resident().items()}
    # An answer has 0.4 MiB: 500 of them would be 200.
    assert max(grown.values()) < 20, grown


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_example(
    server: TritonServer,
    make_engine: Callable[..., Path],
    intsr: Run,
    photo_path: Path,
    tmp_path: Path,
    protocol: str,
) -> None:
    url = f"127.0.0.1:{server.ports[protocol]}"
    command = [server.environment / "bin" / "python", _EXAMPLES / "triton_client.py", "cpu", photo_path, "--url", url]
    command += ["-o", tmp_path / "big.webp", "--parameter", "format=webp", "--parameter", "quality=70"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    grpc = ["--grpc"] * (protocol == "grpc")
    subprocess.run([*command, *grpc], check=True, timeout=60, env=outside)
    engine = make_engine("cpu")
    assert intsr("upscale", engine, photo_path, "-o", tmp_path / "expected.webp", "--quality", 70)[0] == 0
    assert (tmp_path / "big.webp").read_bytes() == (tmp_path / "expected.webp").read_bytes()
    bad = subprocess.run([*command, *grpc, "--parameter", "quality=0"], capture_output=True, text=True, env=outside)
    assert bad.returncode == 1 and "--quality: 0; expected 1 to 100" in bad.stderr and bad.stderr.count("\n") == 1


def test_a_server_that_is_stopped_leaves_no_process_and_no_file(
    make_engine: Callable[..., Path], photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    repository = _export({"cpu": make_engine("cpu")}, tmp_path)
    with TritonServer(repository, tmp_path) as server:
        assert _one(server, "cpu", photo[None], tmp_path)["shape"] == [1, 106, 142, 3]
        processes = [*server.stubs(), *server.workers()]
        assert len(processes) == 2 and list(tmp_path.glob("intsr-serve-*")) and server.regions()
    assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not list(tmp_path.glob("intsr-serve-*"))


def test_options_in_the_configuration_hold(
    make_engine: Callable[..., Path], photo: np.ndarray, tmp_path: Path
) -> None:
    repository = _export({"cpu": make_engine("cpu")}, tmp_path, memory="1M", threads="1")
    with TritonServer(repository, tmp_path) as server:
        answer = _one(server, "cpu", photo[None], tmp_path)
    assert "142x106 pixels out need about" in answer["error"] and answer["status"] == "StatusCode.UNAVAILABLE"
    (tmp_path / "other").mkdir()
    wrong = _export({"cpu": make_engine("cpu")}, tmp_path / "other", tile="99")
    with TritonServer(wrong, tmp_path) as server:
        assert "--tile: 99 pixels; expected 16" in server.models()["cpu"]["reason"]


def test_configurations_are_of_the_official_schema(
    server: TritonServer, intsr: Run, machine, make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    engines = [machine.engine("tensorrt", batch=2, dtype="float16"), make_engine("cpu", batch=8)]
    assert intsr("serve-repository", *engines, "-o", tmp_path / "models")[0] == 0
    configs = {
        path.parent.name: run_in(server.environment, _SUPPORT / "triton_config.py", path.read_text())
        for path in (tmp_path / "models").glob("*/config.pbtxt")
    }
    pictures, encoder = configs["identity"], configs["tensorrt_encoder"]
    assert pictures["backend"] == "python" and pictures["max_batch_size"] == 16
    assert {one["name"]: one["dims"] for one in pictures["input"]} == {
        "image": ["-1", "-1", "3"],
        "image16": ["-1", "-1", "3"],
        "encoded": ["-1"],
    }
    assert pictures["parameters"]["python"]["string_value"] == sys.executable
    assert encoder["platform"] == "tensorrt_plan" and encoder["cc_model_filenames"] == {"8.9": "sm89.plan"}
    assert encoder["input"] == [{"name": "x", "data_type": "TYPE_FP16", "dims": ["2", "3", "32", "32"]}]
    assert encoder["instance_group"][0]["kind"] == "KIND_GPU"
