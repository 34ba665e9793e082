"""Chunks of PNG: its text, and how its values are meant: for screens, for printers, for high dynamic range."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from intsr.errors import printable
from intsr.runtime.pictures.metadata.fields import PngChunks
from intsr.runtime.pictures.metadata.resolution import density_from_jfif, turned_density
from intsr.runtime.pictures.row_pipe import PNG_SIGNATURE

DENSITY, _SRGB, _PRIMARIES, _GAMMA, CODE_POINTS = b"pHYs", b"sRGB", b"cHRM", b"gAMA", b"cICP"
# Name to length. Light of the mastering display and of the content come last.
_LENGTHS = {DENSITY: 9, _SRGB: 1, _PRIMARIES: 32, _GAMMA: 4, CODE_POINTS: 4, b"mDCV": 24, b"cLLI": 8}
# What an ICC profile stands above.
_BELOW_ICC = (_SRGB, _PRIMARIES, _GAMMA)
# What sRGB is anyway. Source: PNG Specification, Third Edition, 11.3.2.5 and 11.3.2.6.
_USUAL = {
    (_GAMMA, struct.pack(">I", 45455)),
    (_PRIMARIES, struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    (CODE_POINTS, bytes((1, 13, 0, 1))),
    *((_SRGB, bytes((intent,))) for intent in range(4)),
}
# What programs write that know of none.
_USUAL_DENSITIES = {struct.pack(">IIB", 1, 1, 0), *(density_from_jfif(1, dpi, dpi) for dpi in (72, 96))}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Read as what they are, and written as such; the last holds either.
_METADATA_TEXTS = (
    b"XML:com.adobe.xmp",
    b"Raw profile type exif",
    b"Raw profile type xmp",
    b"Raw profile type APP1",
    b"Raw profile type icc",
    b"Raw profile type icm",
)
# What programs say of themselves.
_USUAL_TEXTS = (b"Software", b"date:create", b"date:modify", b"date:timestamp")
_MOST_TEXT_BYTES = 4 << 20
_MOST_NAMES = 4
# ITU-T H.273, the common ones.
_PRIMARY_NAMES = {1: "BT.709", 9: "BT.2020", 12: "Display P3"}
_TRANSFER_NAMES = {1: "BT.709", 8: "linear", 13: "sRGB", 14: "BT.2020", 15: "BT.2020", 16: "PQ", 18: "HLG"}


def chunks_from_png(path: Path, turned: bool) -> tuple[PngChunks, tuple[str, ...]]:
    """Those in front of the pixels, text from anywhere, and notes. turned: whether rows will be columns.

    Raises OSError.
    """
    found: dict[bytes, bytes] = {}
    texts: list[tuple[bytes, bytes]] = []
    held_bytes, seen_pixels, notes = 0, False, set[str]()
    with path.open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            following = file.tell() + length + 4
            seen_pixels = seen_pixels or name == b"IDAT"
            if _LENGTHS.get(name) == length and not seen_pixels:
                body, checksum = file.read(length), file.read(4)
                if checksum == _checksum(name, body):
                    found.setdefault(name, body)
            elif name in _TEXTS and held_bytes + length > _MOST_TEXT_BYTES:
                notes.add(f"text of the PNG was dropped: more than {_MOST_TEXT_BYTES} bytes of it")
            elif name in _TEXTS and (body := _sound(name, file.read(length + 4))):
                texts.append((name, body))
                held_bytes += length
            file.seek(following)
    if turned and DENSITY in found:
        found[DENSITY] = turned_density(found[DENSITY])
    return (*found.items(), *texts), tuple(notes)


def _sound(name: bytes, data: bytes) -> bytes:
    """The body of a chunk of text that can stand in another file; empty where it is none. data: with its checksum."""
    body, checksum = data[:-4], data[-4:]
    keyword, found, rest = body.partition(b"\0")
    # Compressed by the only method that there is.
    methods = {b"tEXt": b"", b"zTXt": rest[:1], b"iTXt": rest[1:2]}
    whole = _checksum(name, body) == checksum
    known = 0 < len(keyword) < 80 and found and keyword not in _METADATA_TEXTS
    if not whole or not known or methods[name].strip(b"\0") or (name != b"tEXt" and len(rest) < 2):
        return b""
    return body if name != b"iTXt" or rest.count(b"\0", 2) >= 2 else b""


def chunks_beside_profile(chunks: PngChunks, icc_profile: bytes) -> PngChunks:
    """Those that still say something."""
    return tuple(item for item in chunks if not icc_profile or item[0] not in _BELOW_ICC)


def unusual_chunks(chunks: PngChunks) -> PngChunks:
    """Those that say of the values what a picture without them would not; density and text apart."""
    others = (DENSITY, *_TEXTS)
    return tuple(item for item in chunks if item not in _USUAL and item[0] not in others)


def density_of_chunks(chunks: PngChunks) -> bytes:
    """Empty where there is none."""
    return next((body for name, body in chunks if name == DENSITY), b"")


def usual_density(density: bytes) -> bool:
    """Whether programs write it that know of none."""
    return density in _USUAL_DENSITIES


def names_of_text(chunks: PngChunks) -> str:
    """The first few, for people; those are left out that say nothing of the picture."""
    found = (body.partition(b"\0")[0] for name, body in chunks if name in _TEXTS)
    names = list(dict.fromkeys(name for name in found if name not in _USUAL_TEXTS))
    shown = [printable(name.decode("latin1")) for name in names[:_MOST_NAMES]]
    return ", ".join([*shown, *(["..."] if len(names) > _MOST_NAMES else [])])


def text_from_code_points(body: bytes) -> str:
    """For people. body: of `cICP`."""
    primaries, transfer = body[:2]
    colours = _PRIMARY_NAMES.get(primaries, f"primaries {primaries}")
    return f"{colours} with {_TRANSFER_NAMES.get(transfer, f'transfer {transfer}')}"


def _checksum(name: bytes, body: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "big")
