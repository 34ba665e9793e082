"""What OpenVINO made of an engine, from one start to the next: same bits, checked, bounded, harmless to delete."""

from __future__ import annotations

import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openvino
import pytest
from builds import built_in_this_process
from identity_engines import write_identity_engine

from intsr import bundle as bundle_module
from intsr.errors import BundleError
from intsr.export.pipeline import export_model
from intsr.runtime.backends import compatibility
from intsr.runtime.backends.openvino import backend, blobs, int8
from intsr.runtime.backends.openvino.int8 import EIGHT_BITS, largest_exact_code
from intsr.runtime.engine import open_engine
from intsr.targets.lowering import LOWERINGS

Open = Callable[..., np.ndarray]
NETWORKS = 3


@pytest.fixture(scope="module")
def quantized(tiny_model, tiny_calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A W8A8 engine of the tiny model."""
    from intsr.engines.builders.types import BuildOptions
    from intsr.engines.compile.assemble import compile_engine

    folder = tmp_path_factory.mktemp("engine")
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric-cpu"], 16, folder / "onnx")
    with built_in_this_process():
        compile_engine(folder / "onnx", folder / "tiny.engine", BuildOptions("cpu", detailed=False))
    return folder / "tiny.engine"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized engine by its manifest, compiled in no time."""
    return write_identity_engine(tmp_path_factory.mktemp("small"), "cpu", bits="w8a8", parts=("unet", "vae"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "intsr" / "openvino"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """How many networks were compiled, and not taken from the cache."""
    calls: list[str] = []
    # Which compiles something itself, once a process.
    largest_exact_code()
    compile_model = openvino.Core.compile_model

    def counted(core, *arguments, **options):
        calls.append("compiled")
        return compile_model(core, *arguments, **options)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    yield calls


@pytest.fixture
def start(small: Path, photo: np.ndarray, compiled: list[str]) -> Open:
    def run(path: Path = small, *, expected: int, **options) -> np.ndarray:
        compiled.clear()
        with open_engine(path, **options) as engine:
            picture = engine.upscale(photo)
        assert len(compiled) == expected
        return picture

    return run


def files(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.glob("*")} if cache.is_dir() else {}


@pytest.mark.parametrize("in_place", [False, True])
def test_the_second_start_compiles_nothing(
    start: Open, cache: Path, quantized: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_place:
        monkeypatch.setattr(bundle_module, "COPIED_BYTES", 0)
    first = start(quantized, expected=NETWORKS)
    kept = files(cache)
    assert len(kept) == NETWORKS and all(name.endswith(".blob") for name in kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(start(quantized, expected=0), first)
    assert files(cache) == kept
    # Harmless to delete.
    shutil.rmtree(cache)
    np.testing.assert_array_equal(start(quantized, expected=NETWORKS), first)


@pytest.mark.parametrize("exact", [True, False])
def test_weights_that_lie_in_a_file_are_not_copied(
    start: Open, cache: Path, quantized: Path, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What bytes may be wrong with has no say here.
    monkeypatch.setattr(int8, "largest_exact_code", lambda: EIGHT_BITS if exact else 0)
    start(quantized, expected=NETWORKS)
    copied = files(cache)
    monkeypatch.setattr(bundle_module, "COPIED_BYTES", 0)
    start(quantized, expected=NETWORKS)
    own = sum(files(cache).values()) - sum(copied.values())
    # So many integers the tiny model has, a byte each. Floats that were made of them lie in no file.
    assert (sum(copied.values()) - own > 500_000) is exact
    monkeypatch.setattr(backend, "MAX_COPIED_BYTES", 100_000)
    shutil.rmtree(cache)
    with_blobs = start(quantized, expected=NETWORKS)
    assert len(files(cache)) == (NETWORKS if exact else 0)
    np.testing.assert_array_equal(start(quantized, expected=0 if exact else NETWORKS), with_blobs)


def test_what_decides_the_result_decides_the_file(
    start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path
) -> None:
    start(expected=NETWORKS, threads=1)
    start(expected=NETWORKS, threads=2)
    with open_engine(small, threads=1) as engine:
        usual = engine.precision
    start(expected=0 if usual == "f32" else NETWORKS, threads=1, precision="f32")
    monkeypatch.setattr(compatibility, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("vendor_id : Other\nflags : fpu\ncpu MHz : 1\n")
    start(expected=NETWORKS, threads=1, precision="f32")
    # Its clock does not.
    (tmp_path / "cpuinfo").write_text("vendor_id : Other\nflags : fpu\ncpu MHz : 2\n")
    start(expected=0, threads=1, precision="f32")
    # Nor where the engine lies.
    start(Path(shutil.copy(small, tmp_path / "moved.engine")), expected=0, threads=1, precision="f32")


def test_nothing_is_kept_unless_it_may_be(start: Open, cache: Path, upscale, photo_path: Path, small: Path) -> None:
    start(expected=NETWORKS, cache=False)
    code, _, err = upscale(photo_path, "-o", photo_path.with_name("out.png"), "--no-cache", engine=small)
    assert code == 0 and files(cache) == {}, err
    start(expected=NETWORKS)
    start(expected=NETWORKS, cache=False)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:99] + b"?" + data[100:], lambda _: b""]
)
def test_a_damaged_file_is_made_again(start: Open, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    first = start(expected=NETWORKS)
    path = sorted(cache.glob("*.blob"))[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(
        RuntimeWarning, match=rf"compiled graphs .* cannot be used .*{path.name}: its content is damaged"
    ):
        np.testing.assert_array_equal(start(expected=1), first)
    np.testing.assert_array_equal(start(expected=0), first)


def test_what_openvino_refuses_is_made_again(start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(expected=NETWORKS)

    def refuse(core, *arguments):
        raise RuntimeError("of another\nbuild")

    with monkeypatch.context() as changed:
        changed.setattr(openvino.Core, "import_model", refuse)
        with pytest.warns(RuntimeWarning, match=r"OpenVINO does not take it \(build\)"):
            np.testing.assert_array_equal(start(expected=NETWORKS), first)
    start(expected=0)


def test_a_folder_that_cannot_be_written_is_said(start: Open, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.warns(RuntimeWarning, match="it cannot be"):
        start(expected=NETWORKS)


def test_a_cache_that_others_clear_up(start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(expected=NETWORKS, threads=1)
    for name, where in (("utime", blobs.os), ("stat", Path), ("unlink", Path)):
        with monkeypatch.context() as changed:
            if name != "utime":
                changed.setattr(blobs, "MAX_FOLDER_BYTES", 0)
            real = getattr(where, name)

            def gone(path, *arguments, real=real, **options):
                if str(path).endswith(".blob"):
                    raise FileNotFoundError(path)
                return real(path, *arguments, **options)

            changed.setattr(where, name, gone)
            np.testing.assert_array_equal(start(expected=0 if name == "utime" else NETWORKS, threads=1), first)
            changed.undo()
        shutil.rmtree(cache) if name == "utime" else None


def test_the_folder_is_bounded(start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(expected=NETWORKS, threads=1)
    monkeypatch.setattr(blobs, "MAX_FOLDER_BYTES", int(1.5 * sum(files(cache).values())))
    start(expected=NETWORKS, threads=2)
    assert sum(files(cache).values()) <= blobs.MAX_FOLDER_BYTES
    # What was not used for longest has gone.
    start(expected=0, threads=2)


def test_a_file_that_comes_in_the_engines_place_while_it_is_opened(
    start: Open, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "COPIED_BYTES", 0)
    original = write_identity_engine(tmp_path, "cpu")
    path = Path(shutil.copy(original, tmp_path / "moving.engine"))
    first = start(path, expected=NETWORKS)
    import_model = openvino.Core.import_model

    def replaced(core, *arguments):
        Path(shutil.copy(original, tmp_path / f"{threading.get_ident()}.engine")).replace(path)
        return import_model(core, *arguments)

    monkeypatch.setattr(openvino.Core, "import_model", replaced)
    np.testing.assert_array_equal(start(path, expected=NETWORKS), first)


def test_one_that_fails_closes_the_others(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    open_network = backend.open_network

    def failing(bundle, entry, options):
        if entry.name == "unet":
            raise BundleError("x", "is broken")
        network = open_network(bundle, entry, options)
        monkeypatch.setattr(network, "close", lambda: closed.append(entry.name))
        return network

    monkeypatch.setattr(backend, "open_network", failing)
    with pytest.raises(BundleError, match="is broken"):
        open_engine(small)
    assert sorted(closed) == ["decoder", "encoder"]


def test_ctrl_c_waits_for_what_openvino_is_doing(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, open_network = [], backend.open_network

    def interrupted(bundle, entry, options):
        if entry.name == "encoder":
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        network = open_network(bundle, entry, options)
        ended.append(entry.name)
        return network

    monkeypatch.setattr(backend, "open_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_engine(small)
    assert sorted(ended) == ["decoder", "encoder", "unet"]
