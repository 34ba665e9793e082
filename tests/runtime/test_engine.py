"""Opening: what does not fit is refused from the manifest alone, with the command that fixes it."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from intsr.bundle import read_manifest, write_bundle
from intsr.errors import BundleError, EngineMismatchError, MissingLibraryError, OutOfMemoryError, UsageError
from intsr.runtime.backends import compatibility
from intsr.runtime.engine import Engine, open_engine
from intsr.types import TensorInfo


def _flip_byte_of_a_member(engine: Path, copy: Path) -> Path:
    data = bytearray(engine.read_bytes())
    with zipfile.ZipFile(engine) as archive:
        info = archive.getinfo("unet.member")
    data[info.header_offset + 200] ^= 1
    copy.write_bytes(data)
    return copy


def test_pipeline_and_networks_by_name(any_engine: Path) -> None:
    with open_engine(any_engine, threads=1) as engine:
        x = np.random.default_rng(0).uniform(-1, 1, engine.network("encoder").input.shape).astype(np.float32)
        np.testing.assert_allclose(engine.run_pipeline(x), x, atol=1e-6)
        unet = engine.network("unet")
        assert unet.input.name == "latent"
        first = unet.run(np.ones(unet.input.shape, np.float32))
        unet.run(np.zeros(unet.input.shape, np.float32))
        np.testing.assert_allclose(first, 1, err_msg="a second run must not overwrite what the first returned")
        with pytest.raises(ValueError, match="has shape"):
            engine.run_pipeline(np.zeros((1, 3, 8, 8), np.float32))


def test_flipped_byte(any_engine: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="altered"):
        open_engine(_flip_byte_of_a_member(any_engine, tmp_path / "flipped.engine"))


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_a_gpu_engine_names_the_extra_that_runs_it(
    make_engine, target: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "find_spec", lambda name: None)
    path = make_engine(target=target, library=target, library_version="10.13", gpu_architecture="sm90")
    with pytest.raises(EngineMismatchError) as caught:
        open_engine(path)
    for part in (target, "10.13", "sm90", f"intsr[{extra}]", "intsr compile MODEL --target cpu"):
        assert part in str(caught.value)


@pytest.mark.parametrize("here", ["10.13.1", "11.0.0"])
def test_a_plan_runs_on_its_own_version_alone(make_engine, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "find_spec", lambda name: object())
    monkeypatch.setattr(compatibility.metadata, "version", lambda name: here)
    path = make_engine(target="tensorrt", library="tensorrt", library_version="10.13.0.35")
    with pytest.raises(EngineMismatchError, match=f"10.13.0.35; here is {here}; expected the same version"):
        open_engine(path)


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_a_newer_library_is_asked_for(make_engine, target: str, tmp_path: Path) -> None:
    changed = make_engine(target, library_version="2099.1.0-abc")
    # With two faults, the version is what is reported: nothing is read before its check.
    for path in (changed, _flip_byte_of_a_member(changed, tmp_path / "both.engine")):
        with pytest.raises(EngineMismatchError, match=r"2099\.1.*here is.*pip install -U.*intsr compile MODEL"):
            open_engine(path)


def test_an_older_librarys_engine_opens_and_an_unknown_targets_does_not(make_engine) -> None:
    open_engine(make_engine("cpu", library_version="2026.4.0")).close()
    with pytest.raises(EngineMismatchError, match="built for target abacus"):
        open_engine(make_engine("cpu", target="abacus"))


def test_library_not_installed(identity_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for spec, error in ((None, EngineMismatchError), (object(), MissingLibraryError)):
        monkeypatch.setattr(compatibility, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(error, match=r"onnxruntime is not installed.*intsr\[compile\]"):
            open_engine(identity_engine)


def test_a_member_of_another_kind(make_engine, tmp_path: Path) -> None:
    # Whole by its hash, but not what the target's library takes.
    member = tmp_path / "member"
    member.write_bytes(b"not a network" * 100)
    for target, error in (("cpu", BundleError), ("onnxruntime", EngineMismatchError)):
        manifest = read_manifest(make_engine(target))
        path = tmp_path / f"{target}.engine"
        write_bundle(path, manifest, {entry.member: member for entry in manifest.networks})
        with pytest.raises(error):
            open_engine(path)


def test_shapes_that_the_manifest_does_not_have(make_engine) -> None:
    for target in ("cpu", "onnxruntime"):
        networks = list(read_manifest(make_engine(target)).networks)
        networks[1] = dataclasses.replace(networks[1], outputs=(TensorInfo("denoised", (1, 12, 8, 8), "float32"),))
        with pytest.raises(EngineMismatchError, match="unet has"):
            open_engine(make_engine(target, networks=tuple(networks)))


def test_a_tile_that_is_not_held_is_said_before_anything_is_loaded(any_engine: Path, tmp_path: Path) -> None:
    altered = _flip_byte_of_a_member(any_engine, tmp_path / "altered.engine")
    with pytest.raises(UsageError, match="96 pixels; expected 16, which the engine holds; compile it with --t"):
        open_engine(altered, tile_px=96)
    with open_engine(any_engine, tile_px=16) as engine:
        assert (engine.tile_px, engine.tile_sizes) == (16, (16,))


@pytest.mark.parametrize("options", [{"threads": 0}, {"precision": "f64"}, {"device": "gpu:0"}, {"tile_px": 0}])
def test_options_out_of_range(any_engine: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        open_engine(any_engine, **options)  # type: ignore[arg-type]


def test_missing_and_foreign_files(tmp_path: Path, intsr) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("none.engine", "no such file"),
        (".", r"is a folder; expected an .engine file"),
        ("pipe", r"is no regular file; expected an .engine file"),
    ):
        with pytest.raises(UsageError, match=words):
            open_engine(tmp_path / name)
    code, _, err = intsr("inspect", tmp_path / "pipe")
    assert (code, err.count("\n")) == (2, 1)
    text = tmp_path / "text.engine"
    for content in (b"", b"hello", b"PK\x03\x04"):
        text.write_bytes(content)
        with pytest.raises(BundleError, match="not a bundle"):
            open_engine(text)


@pytest.mark.parametrize(
    ("version", "release"), [("2026.4.1-22982-e213a", (2026, 4, 1)), ("1.31.1", (1, 31, 1)), ("", ())]
)
def test_release_from_version(version: str, release: tuple[int, ...]) -> None:
    assert compatibility.release_from_version(version) == release


def test_a_closed_engine_is_opened_again_from_anywhere(
    any_engine: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(any_engine.parent)
    with open_engine(any_engine.name) as engine:
        assert engine.reopen(engine.tile_px) is engine
        expected = engine.upscale(photo)
    monkeypatch.chdir(tmp_path)
    with engine.reopen(engine.tile_px) as again:
        assert again is not engine
        np.testing.assert_array_equal(again.upscale(photo), expected)


def _overwritten(path: Path) -> None:
    """In place, with other bytes of the same number."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.parametrize("copy", [False, True])
def test_an_engine_in_memory_does_not_see_what_becomes_of_its_file(
    any_engine: Path, photo: np.ndarray, tmp_path: Path, copy: bool, request: pytest.FixtureRequest
) -> None:
    # A small one always is; a large one where that is asked for.
    path = tmp_path / "used.engine"
    shutil.copy(any_engine, path)
    if copy:
        request.getfixturevalue("mapped_engines")
    with open_engine(path, copy=copy) as engine:
        expected, rows = engine.upscale(photo), engine.upscale_rows(photo)
        first = next(rows)
        path.write_bytes(b"")
        np.testing.assert_array_equal(engine.upscale(photo), expected)
        np.testing.assert_array_equal(np.concatenate([first, *rows]), expected)


def test_a_mapped_engine_whose_file_is_written_into_is_an_error(
    make_engine, photo: np.ndarray, tmp_path: Path, mapped_engines: None
) -> None:
    path = tmp_path / "used.engine"
    shutil.copy(make_engine("cpu"), path)
    words = "was written into while it was in use; .*open it again.* --copy-engine"
    with open_engine(path, threads=1) as engine:
        rows = engine.upscale_rows(photo)
        next(rows)
        _overwritten(path)
        with pytest.raises(BundleError, match=words):
            next(rows)
        with pytest.raises(BundleError, match=words):
            engine.upscale(photo)


def test_the_command_reads_an_engine_into_memory(
    make_engine, photo_path: Path, tmp_path: Path, mapped_engines: None, intsr, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "used.engine"
    shutil.copy(make_engine("cpu"), path)
    start = Engine.start

    def overwrite_and_start(self: Engine, *arguments: object, **named: object) -> object:
        _overwritten(path)
        return start(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "start", overwrite_and_start)
    engine = path.read_bytes()
    for options, expected in (((), 1), (("--copy-engine",), 0)):
        path.write_bytes(engine)
        code, _, err = intsr("upscale", path, photo_path, "-o", tmp_path / "out.png", *options)
        assert (code, (tmp_path / "out.png").exists()) == (expected, expected == 0), err


@pytest.mark.parametrize(
    ("target", "where", "error"),
    [
        ("cpu", "openvino.Core.compile_model", RuntimeError("Exception from src/plugin.cpp:1:\nstd::bad_alloc")),
        ("cpu", "openvino.Core.read_model", RuntimeError("Resource temporarily unavailable")),
        ("cpu", "openvino.Core.get_property", ImportError("plugin.so: failed to map segment from shared object")),
        ("onnxruntime", "onnxruntime.InferenceSession", RuntimeError("Failed to allocate memory for buffer")),
        ("onnxruntime", "intsr.runtime.engine.Bundle", OSError(errno.ENOMEM, "Cannot allocate memory")),
        ("onnxruntime", "intsr.runtime.engine.Bundle", MemoryError()),
    ],
)
def test_out_of_memory_while_it_is_opened(
    make_engine, photo_path: Path, tmp_path: Path, intsr, monkeypatch: pytest.MonkeyPatch, target, where, error
) -> None:
    path = make_engine(target)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(where, Mock(side_effect=error))
    with pytest.raises(OutOfMemoryError, match="not enough memory to open it"):
        open_engine(path)
    code, out, err = intsr("upscale", path, photo_path, "-o", tmp_path / "out.png")
    assert (code, out, err.count("\n")) == (4, "", 1), err


def test_what_a_library_refuses_for_another_reason_is_not_out_of_memory(
    make_engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openvino.Core.compile_model", Mock(side_effect=RuntimeError("unknown operation")))
    with pytest.raises(EngineMismatchError, match="refuses it"):
        open_engine(make_engine("cpu"), cache=False)


def test_onnxruntime_out_of_memory_in_a_run(make_engine, photo: np.ndarray) -> None:
    with open_engine(make_engine("onnxruntime")) as engine:
        error = RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")
        engine.networks[1]._session = types.SimpleNamespace(run=Mock(side_effect=error))  # type: ignore[attr-defined]
        with pytest.raises(OutOfMemoryError, match="ONNX Runtime is out of memory"):
            engine.upscale(photo)
