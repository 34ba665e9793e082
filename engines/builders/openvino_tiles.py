"""The weights of target `cpu`: once for several tile sizes of a network, and where they are int8 codes.

Constants are compared by what they hold, not by name: shapes, sizes and border columns differ between tile sizes,
all else is the same bytes. Nothing is computed again, so that a size gives the same bits as it does alone.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree

from intsr.runtime.backends.codes import Codes, codes_from_shape
from intsr.runtime.backends.packed import IR_MAGIC, append_weights, pack_xml, split_member


def share_weights(member_path: Path, further_paths: Sequence[Path]) -> None:
    """Have the packed IRs `further_paths` become .xml members whose weights are those of `member_path`.

    What `member_path` has not yet is appended to its weights.
    """
    with ExitStack() as stack:
        xml, weights = stack.enter_context(_opened(member_path))
        places: dict[bytes, int] = {}
        for constant in _constants(ElementTree.fromstring(xml)):
            places.setdefault(_key(weights, constant), int(constant.attrib["offset"]))
        end, new, members = len(weights), list[memoryview](), []
        for path in further_paths:
            xml, weights = stack.enter_context(_opened(path))
            root = ElementTree.fromstring(xml)
            for constant in _constants(root):
                key = _key(weights, constant)
                if key not in places:
                    new.append(stack.enter_context(_content(weights, constant)))
                    places[key] = end
                    end += len(new[-1])
                constant.set("offset", str(places[key]))
            members.append(pack_xml(ElementTree.tostring(root)))
        append_weights(member_path, new)
    for path, member in zip(further_paths, members, strict=True):
        path.write_bytes(member)


def places_of_codes(member_path: Path) -> list[Codes]:
    """Return where a packed IR has int8 weights."""
    with _opened(member_path) as (xml, weights):
        start = member_path.stat().st_size - len(weights)
    found: dict[int, Codes] = {}
    for constant in _constants(ElementTree.fromstring(xml)):
        shape = [int(side) for side in constant.get("shape", "").split(",") if side]
        if constant.get("element_type") == "i8" and len(shape) > 1:
            offset = start + int(constant.attrib["offset"])
            found[offset] = codes_from_shape(offset, shape)
    return list(found.values())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """The xml and the weights of a packed member; the weights are mapped, not read."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        xml, weights = split_member(IR_MAGIC, view, path)
        with weights:
            yield xml, weights


def _constants(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The `data` of every Const layer, of inner graphs too: its `offset` and `size` are a range of the weights."""
    for layer in root.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            yield data


def _content(weights: memoryview, constant: ElementTree.Element) -> memoryview:
    start = int(constant.attrib["offset"])
    return weights[start : start + int(constant.attrib["size"])]


def _key(weights: memoryview, constant: ElementTree.Element) -> bytes:
    with _content(weights, constant) as content:
        return hashlib.sha256(content).digest()
