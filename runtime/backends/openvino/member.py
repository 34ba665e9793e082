"""The `cpu` target's member: an OpenVINO IR (its .xml and its .bin) in one file.

    8 bytes   magic `INTSRIR1`
    8 bytes   size of the xml in bytes, little endian
    8 bytes   size of the weights in bytes, little endian
    zeros up to byte 64, the xml, zeros up to a multiple of 64, the weights

A further tile size has an .xml alone, gzipped, whose offsets lie in that file's weights.

An IR rather than ONNX: one ONNX file ends at 2 GB and its reader needs 1.5 times the weights on top. An IR rather
than a compiled blob: a blob opens only on the build and the CPU generation that made it.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from intsr.errors import BundleError

MAGIC = b"INTSRIR1"
ALIGNMENT_BYTES = 64
# Far above what a graph of these networks takes: a small member must not unpack into all the memory there is.
MAX_XML_BYTES = 1 << 28
_HEADER = struct.Struct("<8sQQ")
_GZIP_WINDOW = 31


def _padding_bytes(size_bytes: int) -> int:
    return -size_bytes % ALIGNMENT_BYTES


def pack_member(xml_path: Path, bin_path: Path, member_path: Path) -> None:
    """Write the member from an IR's two files."""
    xml_bytes, weights_bytes = xml_path.stat().st_size, bin_path.stat().st_size
    with member_path.open("wb") as member:
        member.write(_HEADER.pack(MAGIC, xml_bytes, weights_bytes).ljust(ALIGNMENT_BYTES, b"\0"))
        for path, padding_bytes in ((xml_path, _padding_bytes(xml_bytes)), (bin_path, 0)):
            with path.open("rb") as source:
                shutil.copyfileobj(source, member, 1 << 22)
            member.write(b"\0" * padding_bytes)


def split_member(view: memoryview, where: object) -> tuple[bytes, memoryview]:
    """The xml, copied, and the weights, a view without a copy. Raises BundleError where it is no such member."""
    if len(view) < ALIGNMENT_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
        raise BundleError(where, "member is not a packed OpenVINO IR", f"{MAGIC.decode()} at its start")
    _, xml_bytes, weights_bytes = _HEADER.unpack_from(view)
    xml_end = ALIGNMENT_BYTES + xml_bytes
    start = xml_end + _padding_bytes(xml_bytes)
    if start + weights_bytes != len(view):
        raise BundleError(where, f"member has {len(view)} bytes", f"{start + weights_bytes} by its header")
    return bytes(view[ALIGNMENT_BYTES:xml_end]), view[start:]


def append_weights(member_path: Path, parts: Iterable[memoryview]) -> None:
    """Make the weights of a packed member longer. Offsets that point into them stay right."""
    with member_path.open("r+b") as member:
        _, xml_bytes, weights_bytes = _HEADER.unpack(member.read(_HEADER.size))
        member.seek(0, 2)
        added_bytes = sum(member.write(part) for part in parts)
        member.seek(0)
        member.write(_HEADER.pack(MAGIC, xml_bytes, weights_bytes + added_bytes))


def pack_xml(xml: bytes) -> bytes:
    """The member of a further tile size; the same xml gives the same bytes."""
    return gzip.compress(xml, mtime=0)


def unpack_xml(view: memoryview, where: object) -> bytes:
    """Raises BundleError for anything that `pack_xml` has not made."""
    reader = zlib.decompressobj(_GZIP_WINDOW)
    try:
        xml = reader.decompress(view, MAX_XML_BYTES)
    except zlib.error as error:
        raise BundleError(where, f"member is not a packed xml ({error})", "gzip") from error
    if not reader.eof or reader.unused_data:
        raise BundleError(
            where, "member is cut short, too long or too large", f"at most {MAX_XML_BYTES} bytes of xml"
        )
    return xml
