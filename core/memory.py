"""How much memory a process has taken, and how much it can still have."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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


def free_bytes() -> int | None:
    """What this process can still have: of the machine's memory, and of the group's it was put into."""
    found = [value for value in (available_bytes(), _group_bytes()) if value is not None]
    return min(found, default=None)


def _group_bytes() -> int | None:
    """Left in the control group, as containers have; None without a limit."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit_bytes = int((_CGROUP / limit).read_text())
            used_bytes = int((_CGROUP / usage).read_text()) - _reclaimable_bytes()
        except (OSError, ValueError):
            continue
        # Version 1 writes a huge number for no limit.
        if limit_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            return max(limit_bytes - max(used_bytes, 0), 0)
    return None


def _reclaimable_bytes() -> int:
    """Of the group's usage, cached files: the kernel drops them when memory is wanted."""
    for path in (_CGROUP / "memory.stat", _CGROUP / "memory/memory.stat"):
        try:
            for line in path.read_text().splitlines():
                if line.startswith(("inactive_file ", "total_inactive_file ")):
                    return int(line.split()[1])
        except (OSError, ValueError):
            continue
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
