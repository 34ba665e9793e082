"""JSON files that intsr wrote: read into the dataclass that describes them, or refused in one line.

A field may be a `Path`, which is a string in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from intsr.errors import IntsrError, UsageError

T = TypeVar("T")


def decode_json(
    data: bytes,
    kind: type[T],
    where: object,
    *,
    error: type[IntsrError] = UsageError,
    version: int | None = None,
    fix: str = "",
) -> T:
    """Return `data` as a `kind`: a plain type, or a dataclass, whose fields' types are checked.

    `version` is what the key `schema_version` must say. Raises `error`, which names `where` and tells `fix`, for what
    is no JSON, another version, missing or unknown keys, values of other types, and those a `__post_init__` refuses.
    """
    try:
        plain = msgspec.json.decode(data)
        found = plain.get("schema_version") if isinstance(plain, dict) else None
        if version is not None and found != version:
            raise error(where, f"schema version {found}", str(version), fix)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise error(where, f"is not valid ({problem})", fix=fix) from problem
    return from_plain(plain, kind, where, error=error, fix=fix)


def from_plain(plain: Any, kind: type[T], where: object, *, error: type[IntsrError] = UsageError, fix: str = "") -> T:
    """Return what was read from JSON as a `kind`. Raises `error` as `decode_json` does."""
    try:
        value = msgspec.convert(plain, kind, dec_hook=lambda inner, text: inner(text))
        _check_known(plain, msgspec.to_builtins(value, enc_hook=str), "$")
    except msgspec.ValidationError as problem:
        raise error(where, f"is not valid ({problem})", fix=fix) from problem
    return value


def read_json(
    path: Path, kind: type[T], *, error: type[IntsrError] = UsageError, version: int | None = None, fix: str = ""
) -> T:
    """Return the content of a file as `decode_json` does. Raises `error`, also where the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(path, f"cannot be read ({problem.strerror or problem})", fix=fix) from problem
    return decode_json(data, kind, path, error=error, version=version, fix=fix)


def _check_known(plain: Any, known: Any, at: str) -> None:
    """Raise ValidationError for a key that no dataclass has: a misspelt option must not go unnoticed."""
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            if key not in known:
                raise msgspec.ValidationError(f"Object has the unknown field `{key}` - at `{at}`")
            _check_known(value, known[key], f"{at}.{key}")
    elif isinstance(plain, list):
        for i, (value, known_value) in enumerate(zip(plain, known, strict=True)):
            _check_known(value, known_value, f"{at}[{i}]")
