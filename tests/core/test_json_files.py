"""JSON files: read into their dataclass, or refused in one line that says where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from intsr.errors import BundleError, UsageError
from intsr.json_files import decode_json, read_json


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class File:
    schema_version: int
    tensors: tuple[Tensor, ...]
    seconds: float = 0.0
    free: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError(f"seconds is {self.seconds}, below 0")


def test_what_json_says_arrives_as_the_dataclass(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(
        '{"schema_version": 1, "tensors": [{"name": "x", "shape": [1, 3]}], "seconds": 2, "free": {"a": 1}}'
    )
    file = read_json(path, File, version=1)
    assert file == File(1, (Tensor("x", (1, 3)),), 2.0, {"a": 1})
    assert isinstance(file.seconds, float)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\xff", "malformed"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "schema version None; expected 1"),
        (b'{"schema_version": 2, "tensors": []}', "schema version 2; expected 1"),
        (b'{"schema_version": 1}', "missing required field `tensors`"),
        (b'{"schema_version": 1, "tensors": [], "tensor": []}', "unknown field `tensor` - at `\\$`"),
        (b'{"schema_version": 1, "tensors": [{"name": "x", "shape": [], "a": 1}]}', r"`a` - at `\$.tensors\[0\]`"),
        (b'{"schema_version": 1, "tensors": [{"name": "x", "shape": [true]}]}', "got `bool`"),
        (b'{"schema_version": 1, "tensors": [], "seconds": -1}', "seconds is -1.0, below 0"),
    ],
)
def test_what_is_not_of_the_kind_is_refused_in_one_line(data, words):
    with pytest.raises(BundleError, match=words) as caught:
        decode_json(data, File, "a.json", error=BundleError, version=1, fix="compile again")
    assert str(caught.value).startswith("a.json: ")
    assert str(caught.value).endswith("; compile again")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error_of_the_same_kind(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json", File)
