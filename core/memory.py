"""How much memory a process has taken, and how much it can still have."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Limit and usage by version of control groups.
_V2, _V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def peak_resident_bytes() -> int:
    """Most memory that this process has had resident."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss would also count the parent's pages from before exec.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def restart_peak() -> None:
    """Have `peak_resident_bytes` count from what is resident now; without Linux's /proc it goes on counting."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes() -> int:
    """Memory of this process that is resident now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_resident_bytes()
    return pages * resource.getpagesize()


def drop_mapped_pages(path: Path) -> None:
    """Have the pages of a file that a library has mapped for reading no longer count as this process's memory.

    They are read again when they are needed. Only on Linux; elsewhere nothing happens.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        place = str(path.resolve())
    except OSError:
        return
    libc = ctypes.CDLL(None)
    for line in lines:
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        # Shared, and not written to: nothing but the file's own pages.
        if permissions == "r--s" and name == [place]:
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def free_bytes() -> int | None:
    """Return what this process can still have, of the machine's memory and of its control groups'.

    A group's limit is for all groups below it too. Source: Linux, admin-guide/cgroup-v1/memory and cgroup-v2.
    """
    found = [available_bytes(), *(_left_bytes(folder, names) for folder, names in _own_groups())]
    return min((value for value in found if value is not None), default=None)


def _own_groups() -> Iterator[tuple[Path, tuple[str, str]]]:
    """Folders of the process's group and of those above it, up to what is mounted, and the names of their files.

    In a container that is mostly its own group, whatever path the host calls it by.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = _OWN_GROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ways = {"": "/", "memory": "/"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in ways and ".." not in path.split("/"):
                ways[name] = path
    for root, path, names in ((_CGROUP, ways[""], _V2), (_CGROUP / "memory", ways["memory"], _V1)):
        folder = root / path.strip("/")
        yield from ((level, names) for level in (folder, *folder.parents) if level.is_relative_to(root))


def _left_bytes(group: Path, names: tuple[str, str]) -> int | None:
    """Return what is left in one group; None without a limit, or where there is no such group."""
    try:
        limit_bytes, used_bytes = (int((group / name).read_text()) for name in names)
    except (OSError, ValueError):
        return None
    # Version 1 writes a huge number for no limit.
    if limit_bytes >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return None
    return max(limit_bytes - max(used_bytes - _reclaimable_bytes(group), 0), 0)


def _reclaimable_bytes(group: Path) -> int:
    """Return how much of the group's usage is cached files, which the kernel drops when memory is wanted."""
    try:
        values = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
        # Version 1 counts groups below apart, and its usage has them in.
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
