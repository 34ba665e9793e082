"""Members of a bundle whose integer weights have fewer than eight bits, stored in as many bits as they need.

Engines compute with int8; a grid of 4, 3 or 2 bits fills a half, three eighths or a quarter of it. What is packed is
unpacked when an engine is opened, byte for byte.

    8 bytes   magic `INTSRPC1`
    8 bytes   size of the table in bytes, little endian
    8 bytes   size of the member when unpacked
    the table, JSON: parts in the member's order, [size] for bytes as they are, [size, stored] for deflated ones (an
            engine's graph in XML), [rows, columns, axis, bits] for codes
    the parts one after the other

Codes of a part are (rows, columns) int8. Their least value along each row (axis 0) or column (axis 1) comes first,
int8, then what they are above it, in planes of 4, 2 and 1 bits, as many as `bits` is made of; a plane's first value
is in the lowest bits of its first byte.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intsr.errors import BundleError

MAGIC = b"INTSRPC1"
_HEADER = struct.Struct("<8sQQ")
_PLANES = (4, 2, 1)
# Codes that need more bits are stored as they are.
MOST_BITS = 6
# Entries of the table for what is no code have at most so many numbers. Deflated is what becomes this much smaller.
BYTES_PART, WORTH_DEFLATING, ZLIB_LEVEL = 2, 0.7, 6
# Values unpacked at a time: what is needed beside the result.
CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Codes:
    """Where a member has int8 codes: (rows, columns) of them from byte `offset`."""

    offset: int
    rows: int
    columns: int


def codes_from_shape(offset: int, shape: Sequence[int]) -> Codes:
    """Codes of a weight, (Cout, Cin, kh, kw) or (in, out)."""
    return Codes(offset, shape[0], math.prod(shape[1:]))


def pack_codes(path: Path, places: Iterable[Codes]) -> None:
    """Replace a member by its packed form; one without codes of few bits stays as it is.

    places: of its codes. They must not overlap.
    """
    data: NDArray[np.int8] = np.memmap(path, np.int8, "r")
    # Stretches of other bytes, and of codes, by where they begin.
    parts: dict[int, list[int]] = {}
    deflated: dict[int, bytes] = {}

    def add_bytes(start: int, stop: int) -> None:
        small = zlib.compress(data[start:stop].data, ZLIB_LEVEL)
        parts[start] = [stop - start]
        if len(small) < (stop - start) * WORTH_DEFLATING:
            deflated[start] = small
            parts[start].append(len(small))

    end = 0
    for place in sorted(places, key=lambda place: place.offset):
        axis, bits = _fewest_bits(_codes_at(data, place.offset, place.rows, place.columns))
        if bits > MOST_BITS:
            continue
        if place.offset > end:
            add_bytes(end, place.offset)
        parts[place.offset] = [place.rows, place.columns, axis, bits]
        end = place.offset + place.rows * place.columns
    if not parts:
        return
    if end < len(data):
        add_bytes(end, len(data))
    table = json.dumps(list(parts.values()), separators=(",", ":")).encode()
    packed_path = path.with_name(f"{path.name}.packed")
    with packed_path.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, len(table), len(data)) + table)
        for start, part in parts.items():
            if len(part) <= BYTES_PART:
                file.write(deflated.get(start) or data[start : start + part[0]].data)
                continue
            rows, columns, axis, bits = part
            codes = _codes_at(data, start, rows, columns)
            least = codes.min(1 - axis, keepdims=True)
            file.write(least.tobytes())
            # In int8 the difference wraps to what it is as an unsigned byte.
            file.write(_packed_planes((codes - least).view(np.uint8).ravel(), bits))
    packed_path.replace(path)


def _codes_at(data: NDArray[np.int8], start: int, rows: int, columns: int) -> NDArray[np.int8]:
    return data[start : start + rows * columns].reshape(rows, columns)


def are_packed(view: memoryview) -> bool:
    """Return whether a member begins like one that `pack_codes` wrote."""
    return len(view) >= _HEADER.size and view[: len(MAGIC)] == MAGIC


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """What a packed member says of itself. bits_of_codes: bits a code -> how many codes are stored in so many."""

    unpacked_bytes: int
    bits_of_codes: dict[int, int]


def stored_codes(view: memoryview, where: object) -> StoredCodes:
    """Raises BundleError for a table or sizes that do not fit."""
    size_bytes, _, parts, _ = _read_table(view, where)
    counts: dict[int, int] = {}
    for part in parts:
        if len(part) > BYTES_PART:
            counts[part[3]] = counts.get(part[3], 0) + part[0] * part[1]
    return StoredCodes(size_bytes, counts)


def _read_table(view: memoryview, where: object) -> tuple[int, int, list[tuple[int, ...]], list[int]]:
    """(bytes unpacked, where the parts start, parts, their bytes)."""
    _, table_bytes, size_bytes = _HEADER.unpack_from(view)
    start = _HEADER.size + table_bytes
    try:
        parts = [tuple(map(int, part)) for part in json.loads(bytes(view[_HEADER.size : start]))]
        sizes = [_unpacked_bytes(part) for part in parts]
        stored = [_stored_bytes(part) for part in parts]
    except (ValueError, TypeError, IndexError) as error:
        raise BundleError(where, f"a table of packed codes that cannot be read ({error})") from error
    if min(sizes, default=0) < 0 or sum(sizes) != size_bytes or start + sum(stored) != len(view):
        raise BundleError(where, f"packed codes of {len(view)} bytes", f"{start + sum(stored)} by their table")
    return size_bytes, start, parts, stored


def unpacked(view: memoryview, where: object) -> memoryview:
    """Return the member as it was before `pack_codes`: in memory of its own, page-aligned, or itself if never packed.

    Raises BundleError for a table or sizes that do not fit.
    """
    if not are_packed(view):
        return view
    size_bytes, start, parts, stored = _read_table(view, where)
    memory = np.frombuffer(mmap.mmap(-1, max(size_bytes, 1)), np.uint8)
    source, at = np.frombuffer(view, np.uint8), 0
    for part, length in zip(parts, stored, strict=True):
        target, content = memory[at : at + _unpacked_bytes(part)], source[start : start + length]
        if len(part) == 1:
            target[:] = content
        elif len(part) == BYTES_PART:
            target[:] = _inflated(content, len(target), where)
        else:
            _unpack(target, content, part)
        at, start = at + len(target), start + length
    return memory.data[:size_bytes]


def _inflated(content: NDArray[np.uint8], size: int, where: object) -> NDArray[np.uint8]:
    inflate = zlib.decompressobj()
    try:
        # No more than that is ever made, whatever the part holds.
        data = inflate.decompress(content.data, size + 1)
    except zlib.error as error:
        raise BundleError(where, f"a deflated part that cannot be read ({error})") from error
    if len(data) != size:
        raise BundleError(where, "a deflated part of another size", f"{size} bytes by its table")
    return np.frombuffer(data, np.uint8)


def _fewest_bits(codes: NDArray[np.int8]) -> tuple[int, int]:
    """(axis, bits): along which axis the codes' least values are to be taken away, and what remains."""
    reach = [int((codes.max(1 - axis).astype(np.int16) - codes.min(1 - axis)).max(initial=0)) for axis in (0, 1)]
    axis = int(reach[1] < reach[0])
    return axis, max(reach[axis].bit_length(), 1)


def _planes(bits: int) -> list[tuple[int, int]]:
    """(width, shift) of every plane."""
    planes, shift = [], 0
    for width in _PLANES:
        if bits & width:
            planes.append((width, shift))
            shift += width
    return planes


def _unpacked_bytes(part: tuple[int, ...]) -> int:
    return part[0] if len(part) <= BYTES_PART else part[0] * part[1]


def _stored_bytes(part: tuple[int, ...]) -> int:
    if len(part) <= BYTES_PART:
        if min(part) < 0:
            raise ValueError(f"a part of {part}")
        return part[-1]
    rows, columns, axis, bits = part
    if axis not in (0, 1) or not 1 <= bits <= MOST_BITS or min(rows, columns) < 1:
        raise ValueError(f"a part of {part}")
    return (rows, columns)[axis] + sum(-(-rows * columns * width // 8) for width, _ in _planes(bits))


def _packed_planes(values: NDArray[np.uint8], bits: int) -> bytes:
    """values: flat, below 2**bits."""
    planes = []
    for width, shift in _planes(bits):
        count = 8 // width
        of_byte = np.zeros((-(-len(values) // count), count), np.uint8)
        of_byte.ravel()[: len(values)] = (values >> shift) & (2**width - 1)
        planes.append(np.bitwise_or.reduce(of_byte << (np.arange(count, dtype=np.uint8) * width), axis=1).tobytes())
    return b"".join(planes)


@cache
def _values_of_bytes(width: int) -> NDArray[np.unsignedinteger]:
    """What each byte of a plane holds, all its values at once: (256,), 16, 32 or 64 bits wide."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    values = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & (2**width - 1)
    return np.ascontiguousarray(values, np.uint8).view(f"u{8 // width}").ravel()


def _unpack(target: NDArray[np.uint8], content: NDArray[np.uint8], part: tuple[int, ...]) -> None:
    rows, columns, axis, bits = part
    count = rows * columns
    least, planes = np.split(content, [(rows, columns)[axis]])
    for width, shift in _planes(bits):
        stored = -(-count * width // 8)
        plane, planes = planes[:stored], planes[stored:]
        table, per_byte = _values_of_bytes(width), 8 // width
        for first in range(0, count, CHUNK):
            chunk = target[first : first + CHUNK]
            wanted = plane[first // per_byte : (first + len(chunk) + per_byte - 1) // per_byte]
            values = table[wanted].view(np.uint8)[: len(chunk)]
            if shift:
                chunk |= values << shift
            else:
                chunk[:] = values
    matrix = target.reshape(rows, columns)
    matrix += least.reshape((-1, 1) if axis == 0 else (1, -1))
