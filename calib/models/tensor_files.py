"""Read a file of tensors, whatever it is: safetensors, or torch's pickles with nothing in them but data.

Both become the same flat thing: tensors by dotted names, mapped from the file where its format allows, and what else
is in it (ranks, lists of names) as plain values. Nothing that a file holds is ever run.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from intsr.errors import ModelError
from intsr.files import file_mode

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".pkl", ".bin")
CHECKPOINT_SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
# A safetensors file begins with the length of its header.
LENGTH_BYTES = 8
# Of a list of names, in an error.
SHOWN = 3
# What is enough to tell a text.
FIRST_BYTES = 64
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(r"\s*<(!doctype|html|head|\?xml|!--)", re.IGNORECASE)
# In a safetensors file's metadata: what is no tensor, as JSON. `intsr convert` writes it.
VALUES_KEY = "intsr_values"
# What broken or foreign files have made torch.load raise.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: dotted name -> tensor as stored, mapped where possible. values: dotted name -> what is no tensor.

    note: what the file says of itself beside its content: safetensors' metadata `note`, the comment of torch's ZIP.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@contextmanager
def as_model_error(where: Path) -> Iterator[None]:
    """Errors of reading and building `where` as ModelErrors of one line."""
    try:
        yield
    except KeyError as error:
        raise ModelError(where, f"no {error}") from error
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(where, str(error)[:400]) from error


def check_is_data(path: Path) -> None:
    """That it is a file, and no text that stands in a file's place. Raises ModelError."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise ModelError(path, got, f"a file with {' '.join(CHECKPOINT_SUFFIXES)}")
    with as_model_error(path), path.open("rb") as file:
        start = file.read(FIRST_BYTES)
    if start.startswith(_LFS):
        fix = "fetch the file itself: git lfs pull"
        raise ModelError(path, "a git-lfs pointer, which only names the weights", "the weights", fix)
    text = start.decode("utf-8", "replace").lstrip("\ufeff")
    # What holds tensors begins with bytes that no text has.
    if text and all(letter.isprintable() or letter in "\r\n\t\f" for letter in text):
        kind = "a web page" if _PAGE.match(text) else f"a text ({' '.join(text.split())[:40]}...)"
        raise ModelError(path, f"{kind}, not weights", "the weights", "download the file itself, not its page")


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises ModelError: no such file, cut short, of another format, or a pickle that is more than data."""
    check_is_data(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path)
    content = _load_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelError(path, f"a {type(content).__name__}", "names and their tensors")
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    _flatten(content, "", path, tensors, values)
    if not tensors:
        raise ModelError(path, "no tensors", "names and their tensors")
    return Checkpoint(path, tensors, values, _comment(path))


def _comment(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as file:
        return file.comment.decode("utf-8", "replace")


def write_pickle(path: Path, content: Mapping[str, Any], note: str) -> None:
    """Write what torch.save writes, with a note that only those find who look for it."""
    # A file of no name: the name would be in the bytes.
    with path.open("wb") as whole:
        torch.save(dict(content), whole)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = note.encode()


def _read_safetensors(path: Path) -> Checkpoint:
    with as_model_error(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        values = json.loads(metadata.get(VALUES_KEY, "{}"))
        if not isinstance(values, dict):
            raise TypeError(f"{VALUES_KEY} is a {type(values).__name__}, not an object")
        return Checkpoint(path, load_file(path), values, metadata.get("note", ""))


def check_names(
    where: Path, what: str, expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ModelError that names the first few of what is missing, too much, or of another shape."""
    wrong = [
        f"{name} {tuple(got[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    problems = {
        "missing": sorted(set(expected) - set(got)),
        "unknown": sorted(set(got) - set(expected)),
        "of another shape": wrong,
    }
    told = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in problems.items()
        if names
    ]
    if told:
        expectation = "exactly what the configuration says"
        raise ModelError(where, f"{what}: tensors {', '.join(told)}", expectation, "give the whole, matching file")


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """safetensors' own writer, and then the metadata in order: it leaves that to chance, so that no two files are
    alike. tensors: contiguous, none sharing memory.
    """
    save_file(tensors, path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same content in another order cannot be longer"
        file.seek(LENGTH_BYTES)
        file.write(text.ljust(size))
    # It also makes files that nobody else may read.
    path.chmod(file_mode())


def _load_pickle(path: Path) -> Any:
    """torch.load of plain data. Only torch's own ZIP format can be mapped; older files are read whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            got = f"refused: unpickling it would run code ({found[1]})"
            fix = "where it was made, save its tensors alone, or as safetensors"
            raise ModelError(path, got, "tensors, numbers, words and lists", fix) from error
        got = "cannot be read as plain data, is cut short, or is no checkpoint"
        raise ModelError(path, got, "what torch.save wrote, or safetensors") from error


def _flatten(
    content: Mapping[Any, Any], prefix: str, path: Path, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Nested names joined by dots. A list of plain values is one value; a list that holds tensors is nested."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in tensors or name in values:
            raise ModelError(path, f"two things called {name}", "names that differ once joined by dots")
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized:
                raise ModelError(path, f"{name} is {value.layout}, quantized: {value.is_quantized}", "a plain tensor")
            tensors[name] = value.detach()
        elif isinstance(value, Mapping):
            _flatten(value, f"{name}.", path, tensors, values)
        elif isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor | Mapping) for v in value):
            _flatten(dict(enumerate(value)), f"{name}.", path, tensors, values)
        else:
            values[name] = _plain(value)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; anything else becomes words."""
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
