"""A tree of pictures of every kind, ten broken, one unreadable; killed and started again."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import picture_tree
import pytest
from PIL import Image

from intsr.errors import EXIT_SOME_FAILED
from intsr.runtime.pictures.picture import LoadedImage
from intsr.runtime.pictures.reader import read_header, read_image

Run = Callable[..., tuple[int, str, str]]
FACTOR = 2


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """50 good, 11 bad."""
    folder = tmp_path_factory.mktemp("tree")
    return folder, picture_tree.write_good(folder, FACTOR), picture_tree.write_broken(folder)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _check(path: Path, source: Path, expected: Any) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.size == expected.size
        assert image.mode == expected.mode or (expected.bits == 16 and expected.mode.startswith(("RGB", "I;16")))
        assert image.getexif().get(0x0112, 1) == 1, "upright, and not to be turned again"
        assert bool(image.info.get("icc_profile")) == expected.icc
        if expected.icc:
            with Image.open(source) as original:
                assert image.info["icc_profile"] == original.info["icc_profile"]
        assert (image.getexif().get(0x013B) == "somebody") == expected.artist
    info = read_header(path)
    assert info.bits == expected.bits
    before, after = read_image(source), read_image(path)
    assert (before.alpha is None) == (after.alpha is None)
    # The networks are the identity: reduced again, the output is the input but for the format's losses.
    small, wanted = _rgb(after), np.asarray(_rgb(before)).astype(int)
    reduced = np.asarray(small.resize(wanted.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(reduced - wanted).mean() < 16


def _rgb(loaded: LoadedImage) -> Image.Image:
    levels = loaded.pixels / (257 if loaded.pixels.dtype == np.uint16 else 1)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def test_every_kind_comes_out_right_and_every_bad_one_is_named(
    intsr: Run, identity_engine: Path, tree: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    folder, good, bad = tree
    output = tmp_path / "out"
    code, out, _ = intsr("upscale", identity_engine, folder, "-r", "-o", output, "--json")
    assert code == EXIT_SOME_FAILED
    lines = {Path(line["input"]).relative_to(folder).as_posix(): line for line in map(json.loads, out.splitlines())}
    assert len(good) == 50 and len(bad) == 11 and set(lines) == {*good, *bad}
    for name, expected in good.items():
        assert lines[name]["status"] == "ok", lines[name]
        assert (lines[name]["width"], lines[name]["height"]) == expected.size
        _check(output / name, folder / name, expected)
    for name in bad:
        assert lines[name]["status"] == "failed" and name in lines[name]["error"]
        assert len(lines[name]["error"]) > len(str(folder / name)) + 8, "with its reason"
    assert set(_digests(output)) == set(good)
    before = {name: (output / name).stat().st_mtime_ns for name in good}
    code, out, _ = intsr("upscale", identity_engine, folder, "-r", "-o", output, "--skip-existing", "--json")
    assert code == EXIT_SOME_FAILED
    assert [json.loads(line)["status"] for line in out.splitlines()].count("skipped") == len(good)
    assert before == {name: (output / name).stat().st_mtime_ns for name in good}


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(
    identity_engine: Path, tree: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    folder, good, _ = tree

    def start(output: Path) -> subprocess.Popen[bytes]:
        command = ["upscale", str(identity_engine), str(folder), "-r", "-o", str(output), "--skip-existing"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", "intsr", *command], **silent)

    def finished() -> int:
        return sum(path.suffix != ".part" for path in output.rglob("*") if path.is_file())

    with start(tmp_path / "whole") as process:
        assert process.wait() == EXIT_SOME_FAILED
    moments, output = random.Random(0), tmp_path / "killed"
    for _ in range(5):
        enough = finished() + moments.randint(1, 7)
        with start(output) as process:
            # By what it has done, not by the clock: this machine may be busy.
            while finished() < enough:
                assert process.poll() is None
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        for path in output.rglob("*"):
            if path.is_file() and path.suffix != ".part":
                with Image.open(path) as image:
                    image.load()
    with start(output) as process:
        assert process.wait() == EXIT_SOME_FAILED
    assert _digests(output) == _digests(tmp_path / "whole")
    assert set(_digests(output)) == set(good)
