"""A graph and its weights in one member of a bundle, for libraries that keep the two apart.

    8 bytes   magic: `INTSRIR1` of an OpenVINO IR, `INTSRON1` of an ONNX graph with external data
    8 bytes   size of the graph in bytes, little endian
    8 bytes   size of the weights in bytes, little endian
    zeros up to byte 64, the graph, zeros up to a multiple of 64, the weights

A further tile size of an IR has an .xml alone, gzipped, whose offsets lie in the first one's weights.

An IR rather than ONNX for OpenVINO: its ONNX reader needs 1.5 times the weights on top. An IR rather than a compiled
blob: a blob opens only on the build and the CPU generation that made it. ONNX with external data: a graph in one
protobuf ends at 2 GB.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from intsr.errors import BundleError

IR_MAGIC, ONNX_MAGIC = b"INTSRIR1", b"INTSRON1"
ALIGNMENT_BYTES = 64
# Far above what a graph of these networks takes: a small member must not unpack into all the memory there is.
MAX_XML_BYTES = 1 << 28
_HEADER = struct.Struct("<8sQQ")
_GZIP_WINDOW = 31


def pack_member(magic: bytes, graph_path: Path, weights_path: Path, member_path: Path) -> None:
    """Write the member from two files."""
    graph_bytes, weights_bytes = graph_path.stat().st_size, weights_path.stat().st_size
    with member_path.open("wb") as member, graph_path.open("rb") as graph, weights_path.open("rb") as weights:
        member.write(_HEADER.pack(magic, graph_bytes, weights_bytes).ljust(ALIGNMENT_BYTES, b"\0"))
        shutil.copyfileobj(graph, member)
        member.write(b"\0" * (-graph_bytes % ALIGNMENT_BYTES))
        shutil.copyfileobj(weights, member, 1 << 22)


def is_packed(magic: bytes, view: memoryview) -> bool:
    """Tell whether a member begins like one that `pack_member` wrote."""
    return len(view) >= ALIGNMENT_BYTES and view[: len(magic)] == magic


def split_member(magic: bytes, view: memoryview, where: object) -> tuple[bytes, memoryview]:
    """Return the graph, copied, and the weights, a view without a copy. Raises BundleError for another member."""
    if not is_packed(magic, view):
        raise BundleError(where, "member is not a packed graph", f"{magic.decode()} at its start")
    _, graph_bytes, weights_bytes = _HEADER.unpack_from(view)
    graph_end = ALIGNMENT_BYTES + graph_bytes
    start = graph_end + (-graph_bytes % ALIGNMENT_BYTES)
    if start + weights_bytes != len(view):
        raise BundleError(where, f"member has {len(view)} bytes", f"{start + weights_bytes} by its header")
    return bytes(view[ALIGNMENT_BYTES:graph_end]), view[start:]


def append_weights(member_path: Path, parts: Iterable[memoryview]) -> None:
    """Make the weights of a packed member longer. Offsets that point into them stay right."""
    with member_path.open("r+b") as member:
        magic, graph_bytes, weights_bytes = _HEADER.unpack(member.read(_HEADER.size))
        member.seek(0, 2)
        added_bytes = sum(member.write(part) for part in parts)
        member.seek(0)
        member.write(_HEADER.pack(magic, graph_bytes, weights_bytes + added_bytes))


def pack_xml(xml: bytes) -> bytes:
    """Return the member of a further tile size; the same xml gives the same bytes."""
    return gzip.compress(xml, mtime=0)


def unpack_xml(view: memoryview, where: object) -> bytes:
    """Raises BundleError for anything that `pack_xml` has not made."""
    reader = zlib.decompressobj(_GZIP_WINDOW)
    try:
        xml = reader.decompress(view, MAX_XML_BYTES)
    except zlib.error as error:
        raise BundleError(where, f"member is not a packed xml ({error})", "gzip") from error
    if not reader.eof or reader.unused_data:
        expected = f"at most {MAX_XML_BYTES} bytes of xml"
        raise BundleError(where, "member is cut short, too long or too large", expected)
    return xml
