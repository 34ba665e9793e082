"""Codes of few bits, packed and unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import BundleError
from intsr.runtime.backends.codes import Codes, are_packed, pack_codes, stored_codes, unpacked


def member_with_codes(bits: int, rows: int, columns: int, axis: int, seed: int) -> tuple[bytes, Codes]:
    """Bytes, a matrix on grids of `bits` bits, each row's or column's at another place, and more bytes."""
    rng = np.random.default_rng(seed)
    shape = (rows, 1) if axis == 0 else (1, columns)
    codes = rng.integers(0, 2**bits, (rows, columns)) - rng.integers(0, 129, shape)
    before = rng.bytes(7)
    return before + codes.astype(np.int8).tobytes() + rng.bytes(3), Codes(len(before), rows, columns)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 40), st.integers(0, 1), st.integers(0, 99))
def test_there_and_back(bits: int, rows: int, columns: int, axis: int, seed: int) -> None:
    import tempfile

    content, place = member_with_codes(bits, rows, columns, axis, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "member"
        path.write_bytes(content)
        pack_codes(path, [place])
        packed = memoryview(path.read_bytes())
    assert are_packed(packed)
    assert bytes(unpacked(packed, "member")) == content
    assert stored_codes(packed, "member").unpacked_bytes == len(content)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_as_many_bits_as_they_need(tmp_path: Path, bits: int) -> None:
    content, place = member_with_codes(bits, 64, 640, 0, 1)
    path = tmp_path / "member"
    path.write_bytes(content)
    pack_codes(path, [place])
    assert stored_codes(memoryview(path.read_bytes()), path).bits_of_codes == {bits: 64 * 640}
    assert path.stat().st_size < len(content) * bits / 8 + 200
    assert [child.name for child in tmp_path.iterdir()] == ["member"]


def test_text_is_deflated_and_noise_is_not(tmp_path: Path) -> None:
    text, (content, place) = b"<layer/>" * 4096, member_with_codes(4, 64, 64, 0, 1)
    path = tmp_path / "member"
    path.write_bytes(text + content)
    pack_codes(path, [Codes(len(text) + place.offset, place.rows, place.columns)])
    packed = path.read_bytes()
    assert len(packed) < 64 * 64 // 2 + 1000 and b"<layer/>" * 8 not in packed
    assert bytes(unpacked(memoryview(packed), "member")) == text + content
    length = int.from_bytes(packed[8:16], "little")
    parts = json.loads(packed[24 : 24 + length])
    assert [len(part) for part in parts] == [2, 4, 1]
    start = 24 + length
    damaged = packed[:start] + bytes(parts[0][1]) + packed[start + parts[0][1] :]
    with pytest.raises(BundleError, match="deflated part that cannot be read"):
        unpacked(memoryview(damaged), "member")
    for change in (-1, 1):
        wrong = json.dumps([[parts[0][0] + change, parts[0][1]], *parts[1:]], separators=(",", ":")).encode()
        sizes = len(wrong).to_bytes(8, "little") + (len(text + content) + change).to_bytes(8, "little")
        with pytest.raises(BundleError, match="deflated part of another size"):
            unpacked(memoryview(packed[:8] + sizes + wrong + packed[start:]), "member")


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    content = np.arange(-128, 128, dtype=np.int8).tobytes()
    path = tmp_path / "member"
    path.write_bytes(content)
    pack_codes(path, [Codes(0, 2, 128)])
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "table",
    [[[1, 2, 0, 9]], [[7], [-1, 2, 0, 4]], [["x"]], 3, [[10**9]]],
    ids=["bits", "rows", "word", "no list", "size"],
)
def test_a_table_that_does_not_fit(tmp_path: Path, table: object) -> None:
    path = tmp_path / "member"
    content, place = member_with_codes(4, 4, 16, 0, 1)
    path.write_bytes(content)
    pack_codes(path, [place])
    packed = path.read_bytes()
    text = json.dumps(table).encode()
    length = int.from_bytes(packed[8:16], "little")
    broken = packed[:8] + len(text).to_bytes(8, "little") + packed[16:24] + text + packed[24 + length :]
    with pytest.raises(BundleError, match="packed codes"):
        unpacked(memoryview(broken), "member")
