"""Kernels that TensorRT-RTX compiled, from one start to the next; over a simulated GPU."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import bicubic

from intsr.cuda.driver import CudaDevice
from intsr.errors import EngineMismatchError
from intsr.runtime.backends.tensorrt.kernel_cache import kernel_cache_path, open_kernel_cache
from intsr.runtime.backends.tensorrt.library import load_tensorrt
from intsr.runtime.engine import open_engine

ALL = [f"{name} {when}" for when in ("at the start", "at the first run") for name in ("encoder", "unet", "decoder")]
GPU = CudaDevice(0, "GeForce One", (8, 9), 1 << 26, "13.2", 2)
pytestmark = pytest.mark.filterwarnings("ignore:.* blends its pictures on the CPU:RuntimeWarning")
Start = Callable[[], list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "intsr" / "tensorrt-rtx"


@pytest.fixture
def start(machine: Any, folder: Path, photo: np.ndarray) -> Start:
    """Open an engine, upscale, close: the kernels that were compiled."""
    path = machine.engine("tensorrt-rtx")

    def run() -> list[str]:
        machine.trt.compiled.clear()
        with open_engine(path) as engine:
            for _ in range(2):
                np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
        machine.assert_nothing_is_left()
        assert machine.trt.faults == []
        return list(machine.trt.compiled)

    return run


def test_the_second_start_compiles_nothing(start: Start, folder: Path) -> None:
    assert sorted(start()) == sorted(ALL)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(files) == 3 and all(path.name.endswith("-GeForce_One-sm89-1.7.1.116.kernels") for path in files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* blends its pictures on the CPU")
        assert start() == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files, "nothing new, nothing written"


def test_nothing_is_kept_where_it_may_not_be(machine: Any, folder: Path, photo: np.ndarray) -> None:
    with open_engine(machine.engine("tensorrt-rtx"), cache=False) as engine:
        np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
    assert not folder.exists()


def test_they_are_kept_behind_the_first_run_and_not_before(machine: Any, folder: Path) -> None:
    with open_engine(machine.engine("tensorrt-rtx")) as engine:
        assert not folder.exists()
        engine.network("unet").run(np.zeros((1, 12, 16, 16), np.float32))
        # Before anything is closed: a process that is killed has them as well.
        (kept,) = folder.iterdir()
        digest = engine.manifest.sha256["unet.plan"]
        assert kept == kernel_cache_path(digest, GPU, "1.7.1.116")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        *(
            pytest.param(damage, marks=pytest.mark.slow)
            for damage in (lambda b: b[:20], lambda b: b"", lambda b: b[:40] + b"x" + b[41:])
        ),
    ],
)
def test_a_damaged_file_never_reaches_tensorrt_and_is_replaced(
    start: Start, folder: Path, machine: Any, damage: Callable[[bytes], bytes]
) -> None:
    start()
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in whole.items():
        path.write_bytes(damage(content))
    machine.trt.cache_contents.clear()
    with pytest.warns(RuntimeWarning, match="its content is damaged"):
        assert sorted(start()) == sorted(ALL)
    assert machine.trt.cache_contents == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == whole
    assert start() == []


@pytest.mark.slow
def test_what_tensorrt_does_not_take_is_compiled_again(start: Start, machine: Any) -> None:
    start()
    machine.trt.driver = "610"
    with pytest.warns(RuntimeWarning, match=r"\.kernels: TensorRT-RTX does not take it"):
        assert sorted(start()) == sorted(ALL)
    assert len(machine.trt.cache_contents) == 3
    assert start() == []


def test_a_folder_that_cannot_be_written_is_a_warning(start: Start, folder: Path) -> None:
    folder.parent.parent.mkdir()
    folder.parent.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="costs time.*cannot be") as caught:
        assert sorted(start()) == sorted(ALL)
    assert all("\n" not in str(warning.message) for warning in caught)


def test_no_home_and_no_cache(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    library = load_tensorrt("tensorrt-rtx", "e.engine")
    with pytest.warns(RuntimeWarning, match="home directory.; set XDG_CACHE_HOME"):
        assert open_kernel_cache(library, None, "0" * 64, GPU, "e.engine") is None


@pytest.mark.parametrize(
    "other",
    [
        ("1" * 64, GPU, "1.7.1"),
        ("0" * 64, dataclasses.replace(GPU, name="GeForce/Two"), "1.7.1"),
        ("0" * 64, dataclasses.replace(GPU, capability=(12, 0)), "1.7.1"),
        ("0" * 64, GPU, "../1.8"),
    ],
)
def test_another_plan_gpu_or_version_is_another_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: tuple[str, CudaDevice, str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = kernel_cache_path("0" * 64, GPU, "1.7.1")
    assert first.parent == folder == kernel_cache_path(*other).parent
    assert kernel_cache_path(*other) != first


def test_tensorrt_keeps_none(machine: Any, folder: Path, photo: np.ndarray) -> None:
    with open_engine(machine.engine("tensorrt")) as engine:
        engine.upscale(photo)
    assert not folder.exists() and machine.trt.live["config"] == 0


@pytest.mark.parametrize(("what", "words"), [("config", "a runtime configuration"), ("cache", "a runtime cache")])
def test_what_tensorrt_cannot_make_is_an_error(machine: Any, folder: Path, what: str, words: str) -> None:
    machine.trt.failures[what] = "API Usage Error"
    with pytest.raises(EngineMismatchError, match=rf"creating {words} failed \(API Usage Error\)") as caught:
        open_engine(machine.engine("tensorrt-rtx"))
    caught.value.__traceback__ = None
    del caught
    machine.assert_nothing_is_left()
