"""Broken pictures of every kind through the reader, in processes of little memory: who crashes, hangs or swells?

Run it: python tests/support/fuzz_pictures.py --count 2000 --seed 1
A mutant is known by its seed and its number: python tests/support/fuzz_pictures.py --seed 1 --only 734 --save a.bin
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import selectors
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MOST_SECONDS = 5.0
# Above what a process has when it begins.
MOST_BYTES = 1 << 30
# What the reader is told is free: it refuses what would take more.
FREE_BYTES = MOST_BYTES // 2
_BATCH = 100
_GOOD = ("read", "refused")
_HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 30000, 1000000)


@dataclass(frozen=True, slots=True)
class Outcome:
    """kind: `read`, `refused`, or what is wrong: `crash`, `hang`, `swollen`, `leaked` (another exception)."""

    number: int
    kind: str
    detail: str


def originals() -> list[bytes]:
    """Small whole pictures: every format, mode and depth that is read, with metadata."""
    y, x = np.mgrid[0:37, 0:45]
    photo = np.stack([(x * 5) % 256, (y * 6) % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    colour = Image.fromarray(photo)
    grey, clear = colour.convert("L"), colour.copy()
    clear.putalpha(Image.fromarray(photo[..., 2]))
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "somebody"
    exif.get_ifd(0x8769)[0xA002] = 45
    exif.get_ifd(0x8825)[1] = "N"
    tags = {"exif": exif.tobytes(), "icc_profile": b"profile" * 40}
    modes = [grey, grey.convert("1"), grey.convert("LA"), colour.quantize(16), colour, clear]
    deep = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    made = [saved(image, "PNG", **tags) for image in [*modes, deep]]
    made += [saved(colour.quantize(16), "PNG", transparency=3), saved(colour, "PNG", transparency=(1, 2, 3))]
    made += [deep_png(photo.astype(np.uint16)[..., :channels]) for channels in (1, 2, 3)]
    made += [deep_png(np.dstack([photo, photo[..., 0]]).astype(np.uint16) * 257)]
    made += [saved(image, "JPEG", **tags) for image in (grey, colour, colour.convert("CMYK"))]
    made += [saved(colour, "JPEG", progressive=True, **tags)]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made += [saved(image, "TIFF", compression=compression) for image in (grey, colour)]
    made += [saved(image, "TIFF", **tags) for image in (grey, colour)]
    made += [saved(image, "TIFF") for image in (*modes, colour.convert("CMYK"), deep)]
    made += [saved(colour, "TIFF", save_all=True, append_images=[grey, clear]), saved(colour, "TIFF", big_tiff=True)]
    made += [deep_tiff(photo, channels, big) for channels in (2, 3, 4) for big in (False, True)]
    made += odd_tiffs(photo)
    for image in (colour, clear):
        made += [saved(image, "WEBP", lossless=lossless, **tags) for lossless in (True, False)]
    made += [saved(colour, "WEBP", save_all=True, append_images=[clear], duration=10)]
    made += [saved(image, "BMP") for image in (grey, grey.convert("1"), colour.quantize(16), colour)]
    made += [saved(image, "AVIF", speed=10, **tags) for image in (grey, colour, clear)]
    return made + with_texts(colour)


def odd_tiffs(photo: np.ndarray) -> list[bytes]:
    """Inks with transparency; the picture behind its preview, and inside of it, with pages behind."""
    inks, chain, inside = io.BytesIO(), io.BytesIO(), io.BytesIO()
    tifffile.imwrite(inks, np.dstack([photo, photo])[..., :5], photometric="separated", extrasamples=(2,))
    for file, settings in ((chain, {}), (inside, {"subifds": 1, "bigtiff": True})):
        with tifffile.TiffWriter(file, bigtiff=settings.pop("bigtiff", False)) as writer:
            writer.write(photo[::4, ::4], photometric="rgb", subfiletype=1, **settings)
            for page in (photo, photo[::-1]):
                writer.write(page.astype(np.uint16) * 257, photometric="rgb")
    return [file.getvalue() for file in (inks, chain, inside)]


def with_texts(colour: Image.Image) -> list[bytes]:
    """What formats keep in ways of their own: text, comments, IPTC, sizes in XMP, density."""
    texts = PngInfo()
    texts.add_text("parameters", "a cat", zip=True)
    texts.add_itxt("Title", "T")
    texts.add(b"tEXt", b"late\0text", after_idat=True)
    xmp = b"<x:xmpmeta tiff:Orientation='6' tiff:ImageWidth='45' hdrgm:Version='1.0'><exif:SubjectArea>1<"
    blocks = b"8BIM\4\4\0\0\0\0\0\6\x1c\2\x78\0\1c8BIM\4\x0c\0\0\0\0\0\2xx"
    segment = b"Photoshop 3.0\0" + blocks
    jpeg = saved(colour, "JPEG", comment=b"by hand", dpi=(300, 150), xmp=xmp)
    jpeg = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    few = saved(colour.convert("L").quantize(4), "PNG", bits=2)
    few = few[:25] + b"\0" + few[26:]
    few = _with_checksums(few[:33] + png_chunk(b"tRNS", b"\0\2") + few[33:])
    made = [saved(colour, "PNG", pnginfo=texts, dpi=(300, 300)), jpeg, few]
    return [
        *made,
        *(saved(colour, kind, dpi=(300, 150)) for kind in ("TIFF", "BMP")),
        saved(colour, "AVIF", speed=10),
    ]


def saved(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **settings)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_from_rows(rows: list[bytes], width: int, bits: int, kind: int, chunks: bytes = b"") -> bytes:
    """kind: PNG's colour type. chunks: between header and pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)) + chunks
    body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


def deep_png(components: np.ndarray, chunks: bytes = b"") -> bytes:
    """components: (H, W, 1 to 4) uint16."""
    _, width, channels = components.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png_from_rows([row.astype(">u2").tobytes() for row in components], width, 16, kind, chunks)


def deep_tiff(photo: np.ndarray, channels: int, big: bool) -> bytes:
    """16-bit values in one strip, turned by their orientation. photo: (H, W, 3) uint8. channels: with alpha."""
    values = np.dstack([photo, photo[..., :1]])[..., :channels].astype(np.uint16) * 257
    settings = {"extrasamples": (2,)} if channels % 2 == 0 else {}
    kind, turned = "minisblack" if channels == 2 else "rgb", [(274, "H", 1, 6, True)]
    file = io.BytesIO()
    tifffile.imwrite(file, values, bigtiff=big, photometric=kind, planarconfig="contig", extratags=turned, **settings)
    return file.getvalue()


def mutant(seed: int, number: int, wholes: list[bytes]) -> bytes:
    """The same bytes for the same seed and number."""
    rng = np.random.default_rng([seed, number])
    data = bytearray(wholes[rng.integers(len(wholes))])
    for _ in range(rng.integers(1, 4)):
        data = _CHANGES[rng.integers(len(_CHANGES))](rng, data, wholes) or bytearray(b"\0")
    # Behind a wrong checksum most readers stop at once.
    return _with_checksums(bytes(data)) if rng.random() < 0.7 else bytes(data)


def _flip(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return data


def _flip_head(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(min(len(data), 300))] = int(rng.integers(256))
    return data


def _truncate(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    return data[: rng.integers(len(data))]


def _lie(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    """A number of 16 or 32 bits becomes an extreme one: sizes, lengths, offsets, counts."""
    size = int(rng.choice([2, 4]))
    where = min(len(data), 200) if rng.random() < 0.5 else len(data)
    at = rng.integers(max(where - size, 1))
    value = _HUGE[rng.integers(len(_HUGE))] & (256**size - 1)
    data[at : at + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    return data


def _blank(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    at, size = rng.integers(len(data)), rng.integers(1, 100)
    data[at : at + size] = bytes([int(rng.choice([0, 255]))]) * len(data[at : at + size])
    return data


def _move(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    """A block is cut out, doubled, or put elsewhere."""
    at, size, to = rng.integers(len(data)), rng.integers(1, 200), rng.integers(len(data))
    block = data[at : at + size]
    if rng.random() < 0.5:
        del data[at : at + size]
    if rng.random() < 0.7:
        data[to:to] = block
    return data


def _splice(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    other = wholes[rng.integers(len(wholes))]
    at = rng.integers(min(len(data), len(other)))
    return bytearray(data[:at] + other[at:])


def _point_back(rng: np.random.Generator, data: bytearray, wholes: list[bytes]) -> bytearray:
    """An offset of a TIFF, or of EXIF, that leads to a place where a directory may be: loops."""
    marks = [at for at in (data.find(b"II*\0"), data.find(b"MM\0*"), data.find(b"II+\0")) if at >= 0]
    if not marks or len(data) < 16:
        return _lie(rng, data, wholes)
    base = marks[0]
    order = "little" if data[base : base + 1] == b"I" else "big"
    first = int.from_bytes(data[base + 4 : base + 8], order)
    at = int(rng.integers(base + 4, max(len(data) - 4, base + 5)))
    # Most often inside the first directory, where the pointers are.
    if rng.random() < 0.8:
        at = min(base + first + 2 + 12 * int(rng.integers(16)) + 8, len(data) - 4)
    target = first if rng.random() < 0.6 else int(rng.integers(len(data)))
    data[at : at + 4] = target.to_bytes(4, order)
    return data


_CHANGES = (_flip, _flip_head, _truncate, _lie, _lie, _blank, _move, _splice, _point_back)


def _with_checksums(data: bytes) -> bytes:
    """PNG's, made right again as far as its chunks can be followed."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = bytearray(data), 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + size > len(data):
            break
        made[at + 8 + size : at + 12 + size] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(made)


def read_mutants(seed: int, first: int, last: int) -> None:
    """In a process of its own: a line before each mutant, one after it."""
    from intsr import memory
    from intsr.errors import ImageError, OutOfMemoryError
    from intsr.memory import peak_resident_bytes, restart_peak
    from intsr.runtime.pictures.reader import read_header, read_image
    from intsr.runtime.pictures.vips import vips

    vips()
    wholes = originals()
    memory.free_bytes = lambda: FREE_BYTES
    used_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most_bytes = used_pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.png"
        for number in range(first, last):
            path.write_bytes(mutant(seed, number, wholes))
            print("begin", number, flush=True)
            restart_peak()
            result = ""
            for read in (read_header, read_image):
                try:
                    read(path)
                    kind = "read"
                except (ImageError, OutOfMemoryError) as error:
                    kind = "refused" if "\n" not in str(error) else f"leaked {error!r}"
                except BaseException as error:
                    kind = f"leaked {type(error).__name__} {' '.join(str(error).split())}"
                result = result if result.startswith("leaked") else kind
            if peak_resident_bytes() > MOST_BYTES:
                result = f"swollen {peak_resident_bytes() >> 20} MiB"
            print("end", number, result, flush=True)


def outcomes(seed: int, count: int) -> Iterator[Outcome]:
    """Every mutant's. A process that dies or hangs is followed by another one, behind the mutant that did it."""
    number = 0
    while number < count:
        for outcome in _outcomes_of_process(seed, number, min(number + _BATCH, count)):
            yield outcome
            number = outcome.number + 1


def _outcomes_of_process(seed: int, first: int, last: int) -> Iterator[Outcome]:
    command = [sys.executable, __file__, "--seed", str(seed), "--child", str(first), str(last)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        # The first line waits for the imports.
        current, rest, patience_s = first, b"", 60.0
        while current < last:
            if not selector.select(patience_s):
                process.kill()
                yield Outcome(current, "hang", f"longer than {patience_s} s")
                return
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data and patience_s > MOST_SECONDS:
                raise RuntimeError("the reading process did not begin")
            if not data:
                yield Outcome(current, "crash", f"exit status {process.wait()}")
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, number, *detail = line.decode(errors="replace").split(" ", 3)
                current, patience_s = int(number), MOST_SECONDS
                if word == "end":
                    yield Outcome(current, detail[0], " ".join(detail[1:]))
                    current += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--child", type=int, nargs=2)
    options = parser.parse_args()
    if options.child:
        read_mutants(options.seed, *options.child)
        return 0
    if options.only is not None:
        options.save.write_bytes(mutant(options.seed, options.only, originals()))
        return 0
    start, counts, bad = time.perf_counter(), Counter[str](), []
    for outcome in outcomes(options.seed, options.count):
        counts[outcome.kind] += 1
        if outcome.kind not in _GOOD:
            bad.append(outcome)
            print(outcome, flush=True)
    print(dict(counts), f"{time.perf_counter() - start:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
