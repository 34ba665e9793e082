"""Many broken pictures through the reader: one error each, no crash, no hang, no gigabytes.

`python tests/support/fuzz_pictures.py --count 2000 --seed N` does the same for as many as one likes.
"""

from __future__ import annotations

from pathlib import Path

import fuzz_pictures
import pytest

from intsr.runtime.pictures.reader import read_header, read_image

SEED = 20


def test_the_whole_pictures_are_read(tmp_path: Path) -> None:
    for number, data in enumerate(fuzz_pictures.originals()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        header, loaded = read_header(path), read_image(path)
        assert loaded.pixels.shape[:2] == (header.height_px, header.width_px), (number, header)
        assert loaded.pixels.dtype.itemsize * 8 == header.bits, (number, header)
        assert loaded.pixels.ndim == (2 if header.channels == 1 else 3), (number, header)
        assert loaded.alpha is None or header.has_alpha, (number, header)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_broken_pictures_are_refused_or_read(count: int) -> None:
    outcomes = list(fuzz_pictures.outcomes(SEED, count))
    assert [outcome.number for outcome in outcomes] == list(range(count))
    assert [outcome for outcome in outcomes if outcome.kind not in ("read", "refused")] == [], f"seed {SEED}"
    assert {outcome.kind for outcome in outcomes} == {"read", "refused"}


def test_a_mutant_is_the_same_every_time() -> None:
    wholes = fuzz_pictures.originals()
    first, second = ([fuzz_pictures.mutant(SEED, number, wholes) for number in range(20)] for _ in range(2))
    assert first == second and len(set(first)) == 20


@pytest.mark.parametrize(
    ("code", "kind"),
    [("import os; os.abort()", "crash"), ("while True: pass", "hang"), ("raise RecursionError('x')", "leaked")],
)
def test_what_goes_wrong_is_seen(monkeypatch: pytest.MonkeyPatch, code: str, kind: str) -> None:
    """A reading process that does not behave names its mutant, and the next one goes on behind it."""
    program = f"""
import sys
first, last = int(sys.argv[-2]), int(sys.argv[-1])
for number in range(first, last):
    print("begin", number, flush=True)
    try:
        if number == 1:
            {code}
        print("end", number, "read", flush=True)
    except Exception as error:
        print("end", number, "leaked", error, flush=True)
"""
    monkeypatch.setattr(fuzz_pictures, "MOST_SECONDS", 0.5)
    popen = fuzz_pictures.subprocess.Popen

    def replaced(command: list[str], **settings: object) -> object:
        return popen([command[0], "-c", program, *command[-2:]], **settings)

    monkeypatch.setattr(fuzz_pictures.subprocess, "Popen", replaced)
    assert [outcome.kind for outcome in fuzz_pictures.outcomes(1, 3)] == ["read", kind, "read"]
