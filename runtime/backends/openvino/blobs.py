"""What OpenVINO made of a network, kept in the user's cache: an engine that was opened before opens in half the time.

A blob is the graph as OpenVINO's passes left it; kernels and their weights' layouts are still made at every opening.
Where weights lie in the engine file as they are, a blob has none of its own but names their places in that file, and
is a hundredth of it; else it has a copy, and large networks are not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intsr.runtime.backends.compatibility import cpu_kind
from intsr.user_cache import KeptFile, user_cache, warn_of_cache

if TYPE_CHECKING:
    from intsr.bundle import Bundle
    from intsr.manifest import NetworkEntry

_WHAT = "compiled graphs"
# Files of another one have other names.
_LAYOUT = 2
# Of all blobs together: those that were not used for longest go first.
MAX_FOLDER_BYTES = 1 << 30
# Of a network whose weights would be in the blob.
MAX_COPIED_BYTES = 64 << 20
_PLACES = re.compile(rb'offset="(\d+)" size="')


def with_places_in_file(xml: bytes, start: int) -> bytes:
    """Return an IR whose constants' offsets count from `start` bytes in front of its weights."""
    return _PLACES.sub(lambda found: b'offset="%d" size="' % (int(found[1]) + start), xml)


def open_blob(
    bundle: Bundle, entry: NetworkEntry, start: int | None, settings: Mapping[str, Any], version: str
) -> KeptFile | None:
    """Return the file of one network, which may not be there; None, with a RuntimeWarning, where there is no place.

    start: of the weights in the engine file, None where the blob has its own. version: of OpenVINO, which reads no
    blob of another one, nor of another kind of CPU.
    """
    members = [bundle.manifest.sha256[name] for name in (entry.weights_member, entry.member) if name]
    facts = [_LAYOUT, members, start, {key: str(value) for key, value in settings.items()}, version, cpu_kind()]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    try:
        return KeptFile(user_cache("openvino") / f"{key}.blob", _WHAT)
    except OSError as error:
        warn_of_cache(_WHAT, str(error))
        return None


def keep(file: KeptFile, content: bytes) -> None:
    """Write a blob; others go where all together are too many."""
    file.write(content)
    known: list[tuple[int, int, Path]] = []
    for path in file.path.parent.glob("*.blob") if content else ():
        # Other processes clear up, too.
        with contextlib.suppress(OSError):
            facts = path.stat()
            known.append((facts.st_mtime_ns, facts.st_size, path))
    total = sum(size_bytes for _, size_bytes, _ in known)
    for _, size_bytes, path in sorted(known):
        if total <= MAX_FOLDER_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size_bytes


def used(path: Path) -> None:
    """Say that a blob was of use, where that can be said."""
    with contextlib.suppress(OSError):
        os.utime(path)
