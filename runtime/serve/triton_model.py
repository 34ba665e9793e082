"""What Triton's Python backend runs: a repository has this file as `model.py`.

It needs nothing but NumPy, as the backend does: the engine is in a process of its own, of the Python that has intsr,
and gets the requests through a pipe. Where that process is killed, its requests are answered with an error, and the
next one starts it again: the backend itself would not.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np

# Of a model's configuration.
PYTHON = "python"
_WORKER = "intsr.runtime.serve.worker"
_LENGTH = struct.Struct("<Q")
# How long the process may take to close its engine.
_CLOSING_S = 20
# What a taken capsule is called: NumPy looks for this name, the backend gives another one. The capsule points to it.
_TAKEN = b"used_dltensor"
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = (ctypes.py_object, ctypes.c_char_p)


def write_message(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a message of JSON, the length first, and arrays behind it."""
    described = [{"shape": array.shape, "dtype": str(array.dtype)} for array in arrays]
    data = json.dumps({**message, "arrays": described}).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read what `write_message` wrote. Raises EOFError where the other side has ended."""
    message = json.loads(_read(stream, *_LENGTH.unpack(_read(stream, _LENGTH.size))))
    arrays = []
    for described in message.pop("arrays"):
        shape, dtype = described["shape"], np.dtype(described["dtype"])
        data = _read(stream, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return message, arrays


def _read(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    # A pipe's buffered reader gives less at its end alone.
    if stream.readinto(data) < size:  # type: ignore[attr-defined]
        raise EOFError
    return data


class EngineProcess:
    """The process that has the engine. Raises RuntimeError, with one line, where it cannot be started."""

    def __init__(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        # Names in capitals are Triton's own.
        options = {name: value["string_value"] for name, value in parameters.items() if not name.isupper()}
        self._python = options.pop(PYTHON, "python3")
        kind, index = args["model_instance_kind"], args["model_instance_device_id"]
        opening = {"device": f"cuda:{index}" if kind == "GPU" else None, "options": options}
        engine = os.path.join(args["model_repository"], args["model_version"], "model.engine")  # noqa: PTH118
        self._arguments = ["-m", _WORKER, engine, json.dumps(opening)]
        # Its own, for files of requests.
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Wait until the engine is open, where it is not."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self.ended()
        # The backend's own Python may be another one.
        environment = {name: os.environ[name] for name in os.environ if name not in ("PYTHONHOME", "PYTHONPATH")}
        self._folder = tempfile.mkdtemp(prefix="intsr-serve-")
        command = [self._python, *self._arguments, self._folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            # Ctrl-C is for the server, which then closes its models.
            self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
            message, _ = self.receive()
        except OSError as error:
            shutil.rmtree(self._folder)
            raise RuntimeError(f"config.pbtxt: parameter {PYTHON}: {error}") from error
        except EOFError:
            raise RuntimeError(f"{self._python} -m {_WORKER} {self.ended()}: the server's log says why") from None
        if "error" in message:
            self.ended()
            raise RuntimeError(message["error"])

    def send(self, message: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
        """Raises OSError where the process has ended."""
        write_message(self._process.stdin, message, arrays)  # type: ignore[union-attr, arg-type]

    def receive(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Raises EOFError where the process has ended."""
        return read_message(self._process.stdout)  # type: ignore[union-attr, arg-type]

    def ended(self) -> str:
        """End the process, and tell how it ended."""
        process, self._process = self._process, None
        assert process is not None
        with suppress(OSError):
            # What has not been written cannot be any more.
            process.stdin.close()  # type: ignore[union-attr]
        try:
            code = process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        shutil.rmtree(self._folder, ignore_errors=True)
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        if self._process is not None:
            self.ended()


class TritonPythonModel:
    """What the backend asks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils

        self._pb = triton_python_backend_utils
        try:
            self._engine = EngineProcess(args)
        except RuntimeError as error:
            raise self._pb.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests together: sent in one message, their tiles share runs."""
        # By response senders each could go at once; but where shared memory is too small for one, the server ends.
        responses = [self._cancelled(request) for request in requests]
        try:
            self._engine.start()
            self._send({index: request for index, request in enumerate(requests) if responses[index] is None})
            while None in responses:
                message, arrays = self._engine.receive()
                responses[message["index"]] = self._response(message, arrays)
        except (RuntimeError, OSError, EOFError) as error:
            text = str(error)
            if not isinstance(error, RuntimeError):
                text = f"the engine's process {self._engine.ended()}; the next request starts it again"
            responses = [self._failed(text, "UNAVAILABLE") if one is None else one for one in responses]
        return responses

    def finalize(self) -> None:
        self._engine.close()

    def _send(self, requests: dict[int, Any]) -> None:
        described, arrays = [], []
        for index, request in requests.items():
            tensors = request.inputs()
            # Not by `as_numpy`, which in many releases of the backend reads wrong bytes with NumPy 2.
            arrays += [np.from_dlpack(tensor) for tensor in tensors]
            described.append(
                {
                    "index": index,
                    "inputs": [tensor.name() for tensor in tensors],
                    "outputs": sorted(request.requested_output_names()),
                    "parameters": json.loads(request.parameters() or "{}"),
                }
            )
        self._engine.send({"requests": described}, arrays)

    def _response(self, message: dict[str, Any], arrays: Sequence[np.ndarray]) -> Any:
        if "error" in message:
            return self._failed(message["error"], message["code"])
        # Nor by `Tensor(name, array)`, which sends nothing then.
        capsule = arrays[0].__dlpack__()
        tensor = self._pb.Tensor.from_dlpack(message["output"], capsule)
        _rename(capsule, _TAKEN)
        return self._pb.InferenceResponse([tensor])

    def _cancelled(self, request: Any) -> Any:
        return self._failed("the request was cancelled", "CANCELLED") if request.is_cancelled() else None

    def _failed(self, text: str, code: str) -> Any:
        self._pb.Logger.log_warn(text)
        kinds = self._pb.TritonError
        return self._pb.InferenceResponse([], kinds(text, getattr(kinds, code)))
