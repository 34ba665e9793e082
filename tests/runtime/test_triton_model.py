"""What Triton's Python backend runs, with a backend that is made up and real processes with engines."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from triton_server import write_python

from intsr.runtime.serve.triton_model import EngineProcess, TritonPythonModel, read_message, write_message
from intsr.runtime.serve.worker import OUTPUTS


def test_messages_arrive_as_they_were_sent() -> None:
    stream = io.BytesIO()
    arrays = [np.arange(12, dtype=np.uint16).reshape(2, 6)[:, ::2], np.zeros((0, 3), np.uint8)]
    write_message(stream, {"a": [1, "ä"]}, arrays)
    stream.seek(0)
    message, read = read_message(stream)
    assert message == {"a": [1, "ä"]} and [array.dtype for array in read] == [np.uint16, np.uint8]
    assert all(np.array_equal(one, other) for one, other in zip(arrays, read, strict=True))
    with pytest.raises(EOFError):
        read_message(stream)


class FakeTensor:
    """As the backend has them: DLPack in and out, and a capsule that it renames."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self.array = name, array

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> FakeTensor:
        holder = SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        kind = type("Holder", (), {key: staticmethod(value) for key, value in vars(holder).items()})
        return FakeTensor(name, np.from_dlpack(kind()))


class FakeRequest:
    def __init__(self, inputs: Sequence[FakeTensor], cancelled: bool = False) -> None:
        self._inputs, self._cancelled = inputs, cancelled

    def inputs(self) -> Sequence[FakeTensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        return self._cancelled

    def requested_output_names(self) -> set[str]:
        return set(OUTPUTS.values())

    def parameters(self) -> str:
        return ""


class FakeError:
    INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED"

    def __init__(self, text: str, code: str) -> None:
        self.text, self.code = text, code


class FakeModelError(Exception):
    pass


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for the backend's module; `warned` has what was logged."""
    warned = list[str]()
    fake = SimpleNamespace(
        TritonModelException=FakeModelError,
        TritonError=FakeError,
        Tensor=FakeTensor,
        Logger=SimpleNamespace(log_warn=warned.append),
        InferenceResponse=lambda tensors, error=None: SimpleNamespace(tensors=tensors, error=error),
        warned=warned,
    )
    monkeypatch.setitem(__import__("sys").modules, "triton_python_backend_utils", fake)
    return fake


def _arguments(engine: Path, tmp_path: Path, **options: str) -> dict[str, str]:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.engine").write_bytes(engine.read_bytes())
    values = {"python": str(write_python(tmp_path / "python")), "FORCE_CPU_ONLY_INPUT_TENSORS": "yes", **options}
    parameters = {name: {"string_value": value} for name, value in values.items()}
    return {
        "model_config": json.dumps({"parameters": parameters}),
        "model_repository": str(tmp_path / "m"),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def test_the_process_is_started_again_where_it_was_killed(
    backend: Any, identity_engine: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = TritonPythonModel()
    model.initialize(_arguments(identity_engine, tmp_path))
    first, cancelled = (FakeRequest([FakeTensor("image", photo[None])], is_) for is_ in (False, True))
    answer, error = model.execute([first, cancelled])
    assert answer.tensors[0].array.shape == (1, 106, 142, 3) and error.error.code == "CANCELLED"

    process = model._engine._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    # It is killed while it has the request.
    monkeypatch.setattr(
        model._engine, "receive", lambda receive=model._engine.receive: (process.kill(), receive())[1]
    )
    lost, next_one = (FakeRequest([FakeTensor("image", photo[None])]) for _ in range(2))
    (failed,) = model.execute([lost])
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "triton_python_backend_utils", backend)
    assert failed.error.text == "the engine's process was killed by signal 9; the next request starts it again"
    assert failed.error.code == "UNAVAILABLE" and failed.error.text in backend.warned
    (again,) = model.execute([next_one])
    assert np.array_equal(again.tensors[0].array, answer.tensors[0].array)
    model.finalize()
    assert not list(tmp_path.glob("intsr-serve-*"))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"python": "/nowhere/python"}, r"config.pbtxt: parameter python: \[Errno 2\] No such file"),
        (
            {"python": "/bin/false"},
            "/bin/false -m intsr.runtime.serve.worker ended with exit code 1: the server's log",
        ),
        ({"tile": "x"}, "config.pbtxt: parameter tile 'x'; expected auto or a number"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(
    backend: Any,
    identity_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FakeModelError, match=expected):
        TritonPythonModel().initialize(_arguments(identity_engine, tmp_path, **options))
    assert not list(tmp_path.glob("intsr-serve-*"))


def test_of_an_altered_engine_the_reason_is_told(backend: Any, identity_engine: Path, tmp_path: Path) -> None:
    arguments = _arguments(identity_engine, tmp_path)
    path = tmp_path / "m" / "1" / "model.engine"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RuntimeError, match=r"model\.engine: "):
        EngineProcess(arguments)
