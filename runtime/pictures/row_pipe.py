"""Rows of pixels on their way into libvips, which runs beside the caller.

libvips reads pictures row by row from a pipe, but only in formats that it knows. PNG without compression is the one
that says everything (8 and 16 bits, 1 to 4 channels) and costs no more than copying: stored blocks and checksums.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable

import numpy as np

from intsr.arrays import Array

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour types of PNG by the number of channels, transparency included.
PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# What lies between the caller and the encoder, so that neither waits for the other all the time.
BUFFER_BYTES = 64 << 20
_CHUNK_BYTES = 4 << 20
_DRAIN_BYTES = 1 << 16


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Length, name, body and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


class _Buffer:
    """A queue of so many bytes, one chunk at least, between two threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._held_bytes, self._closed = most_bytes, 0, False
        self._chunks: deque[memoryview] = deque()
        self._changed = threading.Condition()

    def put(self, chunk: memoryview) -> None:
        """Blocks while it is full. What comes after `close` is dropped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._chunks or self._held_bytes + chunk.nbytes <= self._most_bytes
            )
            if not self._closed:
                self._chunks.append(chunk)
                self._held_bytes += chunk.nbytes
                self._changed.notify_all()

    def get(self) -> memoryview | None:
        """Blocks while it is empty; None where it is empty and closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._chunks)
            if not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._held_bytes -= chunk.nbytes
            self._changed.notify_all()
            return chunk

    def close(self, drop: bool = False) -> None:
        """Nothing more is coming. drop: and nothing of what is here is wanted."""
        with self._changed:
            self._closed = True
            if drop:
                self._chunks.clear()
            self._changed.notify_all()


class RowFeed:
    """Two threads: one that writes the rows into a pipe, one that encodes what comes out of it."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, encode: Callable[[int], None]) -> None:
        """shape: (H, W, C), C channels. encode: given the descriptor of a PNG stream, reads it to its end."""
        self._header = _header(shape, dtype)
        self._encode = encode
        self._buffer = _Buffer(BUFFER_BYTES)
        self._error: BaseException | None = None
        self._stopped = False
        # Made beforehand: where memory has run out, there is none to throw the rest of the stream into.
        self._drain = (bytearray(_DRAIN_BYTES),)
        self._source, self._sink = os.pipe()
        # Daemons: an interrupt in the wrong place must not leave a program that never ends.
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._write_pipe, self._read_pipe)
        ]
        self._start()

    def _start(self) -> None:
        """Both threads or neither. Raises OSError."""
        begun: list[threading.Thread] = []
        try:
            for thread in self._threads:
                thread.start()
                begun.append(thread)
        except (RuntimeError, MemoryError) as error:
            # Each thread closes its own end of the pipe.
            for descriptor in (self._sink, self._source)[len(begun) :]:
                os.close(descriptor)
            self._threads = begun
            self.stop()
            raise OSError(f"no thread could be started: {error}") from error

    def put(self, rows: Array) -> None:
        """rows: (h, W, C). Blocks while the encoder is behind. Raises what the encoder raised."""
        row_bytes = rows[0].nbytes + 1
        step = max(_CHUNK_BYTES // row_bytes, 1)
        for top in range(0, len(rows), step):
            part = rows[top : top + step]
            # A byte in front of each row: it is as it is, PNG's filter 0. PNG is big-endian.
            raw = np.zeros((len(part), row_bytes), np.uint8)
            raw[:, 1:] = part.astype(part.dtype.newbyteorder(">"), copy=False).reshape(len(part), -1).view(np.uint8)
            self._buffer.put(raw.data.cast("B"))
            self._raise()

    def finish(self) -> None:
        """After the last row: wait for the encoder. Raises what it raised."""
        self._buffer.close()
        for thread in self._threads:
            thread.join()
        self._raise()

    def stop(self) -> None:
        """Give up: both threads end soon, and nothing is raised. After `finish` it does nothing."""
        self._stopped = True
        self._buffer.close(drop=True)
        for thread in self._threads:
            thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_pipe(self) -> None:
        try:
            deflate = zlib.compressobj(0)
            _write_all(self._sink, self._header)
            while (chunk := self._buffer.get()) is not None:
                if data := deflate.compress(chunk):
                    _write_all(self._sink, png_chunk(b"IDAT", data))
            if not self._stopped:
                _write_all(self._sink, png_chunk(b"IDAT", deflate.flush()) + png_chunk(b"IEND", b""))
        except Exception as error:
            self._fail(error)
        finally:
            # Without the end of the stream the encoder fails, as it should.
            os.close(self._sink)

    def _read_pipe(self) -> None:
        try:
            self._encode(self._source)
        except BaseException as error:
            self._fail(error)
        finally:
            # libvips keeps a copy of the descriptor for as long as it likes: a writer would wait for ever.
            try:
                while os.readv(self._source, self._drain):
                    pass
            finally:
                os.close(self._source)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._buffer.close(drop=True)


def _header(shape: tuple[int, int, int], dtype: np.dtype) -> bytes:
    height, width, channels = shape
    body = struct.pack(">IIBBBBB", width, height, dtype.itemsize * 8, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    return PNG_SIGNATURE + png_chunk(b"IHDR", body)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
