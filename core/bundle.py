"""The `.engine` bundle: a plain, uncompressed ZIP of `manifest.json` and one member a network.

Stored, not deflated, so that a member is a contiguous range of the file and can be memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread

from intsr.errors import BundleError, UsageError
from intsr.files import atomic_path, sha256_from_path
from intsr.interrupts import wait_through
from intsr.manifest import Manifest, manifest_from_json

MANIFEST_NAME = "manifest.json"
COPY_CHUNK_BYTES = 1 << 22
# What a manifest never reaches: a small file must not unpack into all the memory there is.
MAX_MANIFEST_BYTES = 1 << 24
_LOCAL_HEADER_BYTES = 30
# In the local header of a member that may be long: its sizes in 64 bits.
_ZIP64_BYTES = 20
# Members are aligned so that weights can be memory-mapped and used in place by SIMD instructions.
MEMBER_ALIGNMENT_BYTES = 64
_ALIGNMENT_ID, _ALIGNMENT_FIELD = 0xD935, struct.Struct("<HHH")
# Engines up to this size are read into memory, so that nobody who writes into the file disturbs those who use it.
COPIED_BYTES = 64 << 20
# Device, inode, size in bytes, time of the last change in ns.
Identity = tuple[int, int, int, int]
# A fixed time stamp: the same members give the same bytes.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, Path]) -> Manifest:
    """Write the bundle in one piece or not at all; returns the manifest with the members' hashes filled in."""
    manifest = replace(manifest, sha256={name: sha256_from_path(file) for name, file in members.items()})
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as output,
        zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr(_zip_info(MANIFEST_NAME), json.dumps(asdict(manifest), indent=2))
        for name, file in members.items():
            info = _zip_info(name)
            info.extra = _alignment(output.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + _ZIP64_BYTES)
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)
    return manifest


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _ZIP_EPOCH)
    info.external_attr = 0o644 << 16
    return info


def _alignment(start: int) -> bytes:
    """An extra field that moves a member from `start` to a multiple of MEMBER_ALIGNMENT_BYTES; Android's zipalign."""
    fill_bytes = -(start + _ALIGNMENT_FIELD.size) % MEMBER_ALIGNMENT_BYTES
    return _ALIGNMENT_FIELD.pack(_ALIGNMENT_ID, 2 + fill_bytes, MEMBER_ALIGNMENT_BYTES) + bytes(fill_bytes)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest alone; no member is read or checked. Raises BundleError, UsageError (no such file)."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "make one with: intsr compile MODEL"
        raise UsageError(path, "no such file", "an .engine bundle", fix) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(path, f"cannot be read ({why})", "an .engine bundle") from error
    if not stat.S_ISREG(mode):
        got = "is a folder" if stat.S_ISDIR(mode) else "is no regular file"
        raise UsageError(path, got, "an .engine file", "make one with: intsr compile MODEL")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(MANIFEST_NAME).file_size > MAX_MANIFEST_BYTES:
                raise ValueError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
            data = archive.read(MANIFEST_NAME)
    # RuntimeError: encrypted.
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError, OSError) as error:
        raise BundleError(path, f"not a bundle ({error})", "an .engine file that intsr compile wrote") from error
    return manifest_from_json(data, path)


class LastingMember:
    """A member's bytes, for as long as this object is held."""

    def __init__(self, memory: mmap.mmap, start: int, end: int, in_place: bool) -> None:
        self._map = memory
        # They lie in the file: a program that changes it in place changes, or ends, those that use it
        # (`is_overwritten`); our own put a new file in its place.
        self.in_place = in_place
        # Where it begins in what is mapped, which in place is the file from its first byte.
        self.start = start
        # Writable, so that libraries take it, but what they wrote would not reach the file.
        self.whole = memoryview(memory)
        self.view = self.whole[start:end]

    def drop_pages(self) -> None:
        """Have the pages no longer count as this process's memory; see `Bundle.drop_pages`."""
        if self.in_place:
            _drop_pages(self._map)


def is_overwritten(path: Path, identity: Identity) -> bool:
    """Tell whether somebody has written into the file since; not where another one has taken its place."""
    try:
        found = _identity(path.stat())
    except OSError:
        return False
    return found != identity and found[:2] == identity[:2]


def _identity(facts: os.stat_result) -> Identity:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _drop_pages(mapping: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


class Bundle:
    """A bundle opened read-only, with every hash checked: read into memory with `copy` or where it has at most
    `COPIED_BYTES`, else memory-mapped.

    Raises BundleError where a member is missing or too many, and, from `check` on, where one is altered. No member is
    given out before that but to who asks for it `unchecked`, for what needs no trust. Close it, or use it as a
    context manager. manifest: with the default at `tile_px`, where that is
    given (`Manifest.at_tile`, which raises UsageError). identity: of the file; one that was `checked` before and has
    not changed since is not read again for its hashes. is_used_in_place: a member in the file itself was given out.
    """

    def __init__(
        self, path: Path, tile_px: int | None = None, checked: Identity | None = None, copy: bool = False
    ) -> None:
        self.path = path
        # What is waited for: nothing, until the thread has begun.
        self._hashed, self._checked = Event(), Event()
        self._checked.set()
        self._problem: BaseException | None = None
        self._closing = False
        self.manifest = read_manifest(path).at_tile(tile_px)
        self._file = path.open("rb")
        self.identity = _identity(os.fstat(self._file.fileno()))
        self.is_copy, self.is_used_in_place = copy or self.identity[2] <= COPIED_BYTES, False
        self._map = self._opened_map()
        try:
            self._ranges = self._member_ranges()
            if self.identity != checked:
                # Beside whatever the library has to do first.
                checking = Thread(target=self._check_hashes, daemon=True)
                checking.start()
                # Set by the thread alone, which may be through already.
                self._checked = self._hashed
        except BaseException:
            self.close()
            raise

    def _opened_map(self) -> mmap.mmap:
        if not self.is_copy:
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        # Aligned as a mapped file would be. One that becomes shorter meanwhile ends in zeros: its hashes are wrong.
        memory = mmap.mmap(-1, self.identity[2])
        with memoryview(memory) as view:
            self._file.readinto(view)
        return memory

    def _member_ranges(self) -> dict[str, tuple[int, int]]:
        ranges = {}
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if info.filename == MANIFEST_NAME:
                    continue
                if info.compress_type != zipfile.ZIP_STORED:
                    raise BundleError(self.path, f"member {info.filename} is compressed", "stored members")
                header = self._map[info.header_offset : info.header_offset + _LOCAL_HEADER_BYTES]
                # The local header's own name and extra lengths: the central directory's may differ.
                start = info.header_offset + _LOCAL_HEADER_BYTES
                start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                ranges[info.filename] = (start, start + info.file_size)
        if set(ranges) != set(self.manifest.sha256):
            raise BundleError(self.path, f"members {sorted(ranges)}", f"{sorted(self.manifest.sha256)}")
        entries = [entry for tile in self.manifest.all_tiles for entry in tile.networks]
        named = [name for entry in entries for name in (entry.member, entry.weights_member) if name]
        missing = [name for name in dict.fromkeys(named) if name not in ranges]
        if missing:
            raise BundleError(self.path, f"no member {', '.join(missing)}", "every network of the manifest")
        return ranges

    def _check_hashes(self) -> None:
        try:
            for name, expected in self.manifest.sha256.items():
                found = self._digest(*self._range(name))
                if self._closing:
                    return
                if found != expected:
                    got, fix = f"member {name} is altered (SHA-256 {found[:12]})", "compile or copy the file again"
                    raise BundleError(self.path, got, expected[:12], fix)
                self.drop_pages()
        # Whatever it was, what has not been checked is not given out.
        except BaseException as error:
            self._problem = error
        finally:
            self._hashed.set()

    def _digest(self, start: int, end: int) -> str:
        """Of a range of the file, as far as it is still wanted."""
        digest = hashlib.sha256()
        with memoryview(self._map) as view:
            for offset in range(start, end, COPY_CHUNK_BYTES):
                if self._closing:
                    break
                digest.update(view[offset : min(offset + COPY_CHUNK_BYTES, end)])
        return digest.hexdigest()

    def check(self) -> None:
        """Wait until all hashes are known. Raises BundleError for a member that is altered or cut short."""
        self._checked.wait()
        if self._problem is not None:
            raise self._problem

    def member(self, name: str) -> memoryview:
        """The member's bytes, without a copy. Release the view before `close`."""
        self.check()
        start, end = self._range(name)
        return memoryview(self._map)[start:end]

    def lasting_member(self, name: str, unchecked: bool = False) -> LastingMember:
        """Return the member so that it outlives the bundle: in a mapping of its own, or in the copy."""
        if not unchecked:
            self.check()
        start, end = self._range(name)
        if self.is_copy:
            return LastingMember(self._map, start, end, in_place=False)
        self.is_used_in_place = True
        memory = mmap.mmap(self._file.fileno(), end, access=mmap.ACCESS_COPY)
        return LastingMember(memory, start, end, in_place=True)

    def _range(self, name: str) -> tuple[int, int]:
        start, end = self._ranges[name]
        if end > len(self._map):
            raise BundleError(self.path, f"member {name} is cut short", fix="copy the file again")
        return start, end

    def drop_pages(self) -> None:
        """Have what was read of a mapped file no longer count as this process's memory; it may be read again."""
        if not self.is_copy:
            _drop_pages(self._map)

    def is_unchanged(self) -> bool:
        """Tell whether the path still leads to the file that was opened, as it was."""
        try:
            return _identity(self.path.stat()) == self.identity
        except OSError:
            return False

    def sizes_bytes(self) -> dict[str, int]:
        return {name: end - start for name, (start, end) in self._ranges.items()}

    def close(self) -> None:
        self._closing = True
        try:
            wait_through(self._checked.wait)
        finally:
            # A copy goes with the last of its members.
            if not self.is_copy:
                self._map.close()
            self._file.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
