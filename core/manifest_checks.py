"""Whether what was read from JSON is of the types that a dataclass declares; its constructor does not look."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from intsr.types import Manifest, TensorInfo, is_kind

# What arrays can be made of; the libraries' own names are mapped to these.
_DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool")
_MOST = 1 << 31
_JSON_NAMES = {str: "string", int: "whole number", bool: "true or false", tuple: "list"}


def check_manifest(manifest: Manifest) -> None:
    """Raises TypeError, ValueError."""
    check_kinds(manifest, Manifest, "manifest")
    for name in ("tile_px", "upscale_factor"):
        if not 1 <= getattr(manifest, name) < _MOST:
            raise ValueError(f"{name} is {getattr(manifest, name)}")
    for entry in (entry for tile in manifest.all_tiles for entry in tile.networks):
        if not entry.member:
            raise ValueError(f"no member of {entry.name}")
        for tensor in (entry.input, entry.output):
            _check_tensor(tensor, entry.name)


def _check_tensor(tensor: TensorInfo, where: str) -> None:
    if len(tensor.shape) != 4 or not all(0 < side < _MOST for side in tensor.shape):
        raise ValueError(f"shape {tensor.shape} of {where}")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"dtype {tensor.dtype!r} of {where}")


def check_kinds(value: Any, kind: Any, where: str) -> None:
    """kind: of those that the dataclasses of a manifest or an export use. Raises TypeError."""
    inner = get_args(kind)
    plain = get_origin(kind) or kind
    if kind is not Any and not is_kind(value, plain):
        raise TypeError(f"{where} is {value!r:.40}, no {_JSON_NAMES.get(plain, 'JSON object')}")
    if plain is tuple:
        for item in value:
            check_kinds(item, inner[0], where)
    elif plain is dict:
        for key, item in value.items():
            check_kinds(key, inner[0], where)
            check_kinds(item, inner[1], f"{where} of {key}")
    elif is_dataclass(plain):
        kinds = get_type_hints(plain)
        for field in fields(plain):
            check_kinds(getattr(value, field.name), kinds[field.name], field.name)
