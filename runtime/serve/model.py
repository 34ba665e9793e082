"""What Triton's Python backend calls, an object for each instance of a model: open, answer requests, close."""

from __future__ import annotations

import json
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError, IntsrError, OutOfMemoryError, UsageError, printable
from intsr.runtime.batch.memory import bytes_from_text
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.serve.answers import answers
from intsr.runtime.serve.tasks import Task, array_task, file_task
from intsr.runtime.serve.tensors import array_from_tensor, tensor_from_array

ENGINE_NAME = "model.engine"
# Inputs, of which a request has one, and the output that answers each.
OUTPUTS = {"image": "upscaled_image", "image16": "upscaled_image16", "encoded": "upscaled_encoded"}
AUTO = "auto"
# Of the model's configuration, with what stands there unless somebody changes it.
DEFAULTS = {"threads": AUTO, "tile": AUTO, "memory": AUTO, "precision": AUTO}


@dataclass(slots=True)
class _Asked:
    """One request: its tasks, and what came of them."""

    request: Any
    output: str = ""
    tasks: list[Task] = field(default_factory=list)
    results: list[Array] = field(default_factory=list)
    error: Exception | None = None


class ServedModel:
    """An engine as a model of Triton. pb_utils: the backend's module `triton_python_backend_utils`."""

    def __init__(self, arguments: Mapping[str, str], pb_utils: Any) -> None:
        """arguments: of `initialize`. Raises pb_utils.TritonModelException with one line."""
        self._pb = pb_utils
        with ExitStack() as opened:
            try:
                self._folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="intsr-serve-")))
                options = _options(json.loads(arguments["model_config"]).get("parameters", {}))
                self._memory_bytes = None if options["memory"] == AUTO else bytes_from_text(options["memory"])
                self._engine = opened.enter_context(_open(arguments, options))
            except (IntsrError, OSError, MemoryError) as error:
                raise pb_utils.TritonModelException(_line(error, Path())) from error
            self._opened = opened.pop_all()

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer each request as soon as its pictures are done, with an error where something is wrong with it."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            asked = [self._asked(request, Path(folder, str(index))) for index, request in enumerate(requests)]
            tasks = [task for one in asked for task in one.tasks]
            made = answers(self._engine, tasks, self._memory_bytes)
            for one in asked:
                self._answer(one, made)

    def close(self) -> None:
        self._opened.close()

    def _asked(self, request: Any, folder: Path) -> _Asked:
        asked = _Asked(request)
        try:
            asked.output, asked.tasks = self._tasks(request, folder)
        except Exception as error:
            asked.error = error
        return asked

    def _tasks(self, request: Any, folder: Path) -> tuple[str, list[Task]]:
        if request.is_cancelled():
            raise _CancelledError("the request was cancelled")
        inputs = {tensor.name(): array_from_tensor(tensor) for tensor in request.inputs()}
        if len(inputs) != 1:
            raise UsageError("request", f"inputs {sorted(inputs)}", f"one of {', '.join(OUTPUTS)}")
        ((name, array),) = inputs.items()
        output = OUTPUTS[name]
        if output not in request.requested_output_names():
            raise UsageError("request", f"input {name}, but not output {output}", "the output of the same kind")
        parameters = json.loads(request.parameters() or "{}")
        if name != "encoded":
            return output, [array_task(self._engine, pixels, parameters, self._memory_bytes) for pixels in array]
        if len(array) != 1:
            raise UsageError("encoded", f"{len(array)} pictures", "one a request", "send (1, bytes)")
        folder.mkdir()
        return output, [file_task(self._engine, array[0], parameters, self._memory_bytes, folder)]

    def _answer(self, asked: _Asked, made: Iterator[Array | Exception]) -> None:
        for _ in asked.tasks:
            result = next(made)
            if isinstance(result, Exception):
                asked.error = asked.error or result
            else:
                asked.results.append(result)
        if asked.error is None:
            # Most requests have one picture, which is not copied.
            whole = asked.results[0][None] if len(asked.results) == 1 else np.stack(asked.results)
            response = self._pb.InferenceResponse([tensor_from_array(self._pb, asked.output, whole)])
        else:
            response = self._pb.InferenceResponse([], self._error(asked.error))
        # Nothing of it is held while others are waited for.
        asked.results.clear()
        sender = asked.request.get_response_sender()
        sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _error(self, error: Exception) -> Any:
        codes = self._pb.TritonError
        text = _line(error, self._folder)
        kinds = {
            (_CancelledError,): codes.CANCELLED,
            (OutOfMemoryError, MemoryError): codes.UNAVAILABLE,
            (ImageError, UsageError): codes.INVALID_ARG,
        }
        code = next((code for kind, code in kinds.items() if isinstance(error, kind)), codes.INTERNAL)
        if not isinstance(error, IntsrError | OSError | MemoryError | _CancelledError):
            # A bug.
            self._pb.Logger.log_error("".join(traceback.format_exception(error)))
        self._pb.Logger.log_warn(text)
        return codes(text, code)


class _CancelledError(Exception):
    """Nobody waits for the answer any more."""


def _open(arguments: Mapping[str, str], options: Mapping[str, str]) -> Engine:
    path = Path(arguments["model_repository"], arguments["model_version"], ENGINE_NAME)
    return open_engine(
        path,
        _number("threads", options["threads"]),
        options["precision"],
        device=f"cuda:{arguments['model_instance_device_id']}" if arguments["model_instance_kind"] == "GPU" else None,
        tile_px=_number("tile", options["tile"]),
    )


def _options(parameters: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Those of `DEFAULTS`, as the configuration has them. Names in capitals are Triton's own. Raises UsageError."""
    given = {name: value["string_value"] for name, value in parameters.items() if not name.isupper()}
    for name in given:
        if name not in DEFAULTS:
            raise UsageError("config.pbtxt", f"parameter {name}", f"one of {', '.join(DEFAULTS)}")
    return DEFAULTS | given


def _number(name: str, text: str) -> int | None:
    if text != AUTO and not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise UsageError("config.pbtxt", f"parameter {name} {text!r}", f"{AUTO} or a number")
    return None if text == AUTO else int(text)


def _line(error: Exception, folder: Path) -> str:
    """Return what is wrong, in one line, in which files of the folder are called as the input is."""
    text = printable(" ".join(f"{error}".split())) or type(error).__name__
    inner = re.escape(str(folder) + os.sep)
    return re.sub(rf"{inner}\S*/", "", text)
