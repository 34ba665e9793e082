"""The process that has the engine behind a model of Triton: requests come through stdin, answers go through stdout.

`triton_model.py` starts it and has the format of both. It ends where stdin ends: then the server has ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from intsr.arrays import Array
from intsr.errors import ImageError, IntsrError, OutOfMemoryError, UsageError, printable
from intsr.runtime.batch.memory import bytes_from_text
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.serve.answers import answers
from intsr.runtime.serve.tasks import Task, array_task, file_task
from intsr.runtime.serve.triton_model import read_message, write_message

# Inputs, of which a request has one, and the output that answers each.
OUTPUTS = {"image": "upscaled_image", "image16": "upscaled_image16", "encoded": "upscaled_encoded"}
AUTO = "auto"
# Of the model's configuration, with what stands there unless somebody changes it.
DEFAULTS = {"threads": AUTO, "tile": AUTO, "memory": AUTO, "precision": AUTO}


@dataclass(slots=True)
class _Asked:
    """One request: its tasks, and what came of them."""

    index: int
    output: str = ""
    tasks: list[Task] = field(default_factory=list)
    results: list[Array] = field(default_factory=list)
    error: Exception | None = None


class Worker:
    """An open engine that answers requests. folder: for files of requests that are being answered."""

    def __init__(self, path: Path, device: str | None, options: Mapping[str, str], folder: Path) -> None:
        """options: of `DEFAULTS`. Raises UsageError, and what `open_engine` raises."""
        for name in options:
            if name not in DEFAULTS:
                raise UsageError("config.pbtxt", f"parameter {name}", f"one of {', '.join(DEFAULTS)}")
        options = {**DEFAULTS, **options}
        self._folder = folder
        self._memory_bytes = None if options["memory"] == AUTO else bytes_from_text(options["memory"])
        threads, tile_px = (_number(name, options[name]) for name in ("threads", "tile"))
        self._engine: Engine = open_engine(path, threads, options["precision"], device=device, tile_px=tile_px)

    def answer(self, requests: Sequence[Mapping[str, Any]], arrays: Sequence[Array], stream: IO[bytes]) -> None:
        """Write an answer for each request, in order, an error where something is wrong with it."""
        inputs = iter(arrays)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            asked = [
                self._asked(request, {name: next(inputs) for name in request["inputs"]}, Path(folder, str(number)))
                for number, request in enumerate(requests)
            ]
            made = answers(self._engine, [task for one in asked for task in one.tasks], self._memory_bytes)
            for one in asked:
                self._collect(one, made)
                self._send(one, stream)

    def close(self) -> None:
        self._engine.close()

    def _asked(self, request: Mapping[str, Any], inputs: Mapping[str, Array], folder: Path) -> _Asked:
        asked = _Asked(request["index"])
        try:
            if len(inputs) != 1:
                raise UsageError("request", f"inputs {', '.join(inputs) or 'none'}", f"one of {', '.join(OUTPUTS)}")
            ((name, array),) = inputs.items()
            asked.output = OUTPUTS[name]
            if asked.output not in request["outputs"]:
                raise UsageError("request", f"input {name}, but not output {asked.output}", "the output of its kind")
            asked.tasks = self._tasks(name, array, request["parameters"], folder)
        except Exception as error:
            asked.error = error
        return asked

    def _tasks(self, name: str, array: Array, parameters: Mapping[str, Any], folder: Path) -> list[Task]:
        if name != "encoded":
            return [array_task(self._engine, pixels, parameters, self._memory_bytes) for pixels in array]
        if len(array) != 1:
            raise UsageError("encoded", f"{len(array)} pictures", "one a request", "send it as (1, bytes)")
        folder.mkdir()
        return [file_task(self._engine, array[0], parameters, self._memory_bytes, folder)]

    def _collect(self, asked: _Asked, made: Iterator[Array | Exception]) -> None:
        for _ in asked.tasks:
            result = next(made)
            if isinstance(result, Exception):
                asked.error = asked.error or result
            else:
                asked.results.append(result)

    def _send(self, asked: _Asked, stream: IO[bytes]) -> None:
        if asked.error is not None:
            text = one_line(asked.error, self._folder)
            write_message(stream, {"index": asked.index, "error": text, "code": _code(asked.error)})
            return
        # Most requests have one picture, which is not copied.
        whole = asked.results[0][None] if len(asked.results) == 1 else np.stack(asked.results)
        # Nothing of it is held while others are waited for.
        asked.results.clear()
        write_message(stream, {"index": asked.index, "output": asked.output}, [whole])


def one_line(error: Exception, folder: Path) -> str:
    """Return what is wrong, in one line, in which a file of the folder is called by its own name."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return re.sub(rf"{re.escape(str(folder) + os.sep)}\S*/", "", text)


def _code(error: Exception) -> str:
    """Return the name of Triton's error code."""
    if isinstance(error, OutOfMemoryError | MemoryError):
        return "UNAVAILABLE"
    if isinstance(error, ImageError | UsageError):
        return "INVALID_ARG"
    if not isinstance(error, IntsrError | OSError):
        # A bug.
        traceback.print_exception(error)
    return "INTERNAL"


def _number(name: str, text: str) -> int | None:
    if text != AUTO and not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise UsageError("config.pbtxt", f"parameter {name} {text!r}", f"{AUTO} or a number")
    return None if text == AUTO else int(text)


def main() -> None:
    """Arguments: the engine, how to open it, a folder that goes with the process."""
    path, opening, folder = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    # Libraries that print do not print into the answers.
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        worker = Worker(path, opening["device"], opening["options"], folder)
    except (IntsrError, OSError, MemoryError) as error:
        write_message(stream, {"error": one_line(error, folder)})
        return
    # The server is gone where a pipe is.
    with suppress(EOFError, BrokenPipeError):
        write_message(stream, {})
        while True:
            message, arrays = read_message(sys.stdin.buffer)
            worker.answer(message["requests"], arrays, stream)
    worker.close()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
