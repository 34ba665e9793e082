"""`intsr serve-repository`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intsr.bundle import Bundle
from intsr.manifest import NetworkEntry
from intsr.runtime.serve.config import capability_of, plan_config, quoted
from intsr.types import TensorInfo

Run = Callable[..., tuple[int, str, str]]


def test_a_model_for_each_engine_called_as_the_file_is(
    intsr: Run, make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    engines = [make_engine().rename(tmp_path / f"{name}.engine") for name in ("photos", "films-2")]
    code, out, _ = intsr("serve-repository", *engines, "-o", tmp_path / "models", "--json")
    assert code == 0 and json.loads(out)["models"] == ["photos", "films-2"]
    for engine in engines:
        folder = tmp_path / "models" / engine.stem
        assert (folder / "1" / "model.engine").read_bytes() == engine.read_bytes()
        compile((folder / "1" / "model.py").read_text(), "model.py", "exec")
        text = (folder / "config.pbtxt").read_text()
        assert f'name: "{engine.stem}"' in text and "KIND_CPU" in text and sys.executable in text
        assert 'key: "tile" value { string_value: "16" }' in text
    assert "photos, films-2" in (tmp_path / "models" / "README.md").read_text()


def test_the_engine_is_a_copy_so_that_its_file_may_be_overwritten(
    intsr: Run, identity_engine: Path, tmp_path: Path
) -> None:
    assert intsr("serve-repository", identity_engine, "-o", tmp_path / "models")[0] == 0
    copy = tmp_path / "models" / "identity" / "1" / "model.engine"
    assert copy.stat().st_ino != identity_engine.stat().st_ino and copy.stat().st_nlink == 1


def test_the_servers_python_may_be_another_one(intsr: Run, identity_engine: Path, tmp_path: Path) -> None:
    python = "/opt/intsr/bin/python"
    assert intsr("serve-repository", identity_engine, "-o", tmp_path / "models", "--python", python)[0] == 0
    text = (tmp_path / "models" / "identity" / "config.pbtxt").read_text()
    assert f'key: "python" value {{ string_value: "{python}" }}' in text and sys.executable not in text
    assert python in (tmp_path / "models" / "README.md").read_text()


def test_plans_of_tensorrt_are_models_too_those_of_rtx_are_not(intsr: Run, machine, tmp_path: Path) -> None:
    engines = [machine.engine("tensorrt"), machine.engine("tensorrt-rtx")]
    code, _, error = intsr("serve-repository", *engines, "-o", tmp_path / "models")
    assert code == 0 and "no model for each plan: Triton's backends load none of tensorrt-rtx" in error
    names = {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()}
    plans = {f"tensorrt_{network}" for network in ("encoder", "unet", "decoder")}
    assert names == {"tensorrt", "tensorrt-rtx"} | plans
    assert "KIND_GPU" in (tmp_path / "models" / "tensorrt-rtx" / "config.pbtxt").read_text()
    for name in plans:
        with Bundle(engines[0]) as bundle, bundle.member(f"{name.removeprefix('tensorrt_')}.plan") as member:
            assert (tmp_path / "models" / name / "1" / "sm89.plan").read_bytes() == member
        text = (tmp_path / "models" / name / "config.pbtxt").read_text()
        assert 'cc_model_filenames { key: "8.9" value: "sm89.plan" }' in text


def test_a_plan_for_several_architectures_is_the_models_default() -> None:
    tensors = (TensorInfo("x", (4, 3, 64, 64), "float16"),)
    text = plan_config("a_encoder", NetworkEntry("encoder", "encoder.plan", tensors, tensors), "model.plan", "")
    assert 'default_model_filename: "model.plan"' in text and "cc_model_filenames" not in text
    assert 'input { name: "x" data_type: TYPE_FP16 dims: [ 4, 3, 64, 64 ] }' in text
    assert [capability_of(text) for text in ("sm89", "sm120", "sm80+", "sm86,sm89", "")] == [
        "8.9",
        "12.0",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "text, expected", [("/a b", '"/a b"'), ('"\\\n', '"\\042\\134\\012"'), ("é", '"\\303\\251"')]
)
def test_strings_are_quoted_as_protobuf_reads_them(text: str, expected: str) -> None:
    assert quoted(text) == expected


def test_a_repository_is_replaced_only_when_that_is_asked_for(
    intsr: Run, identity_engine: Path, tmp_path: Path
) -> None:
    command = ("serve-repository", identity_engine, "-o", tmp_path / "models")
    assert intsr(*command)[0] == 0
    code, _, error = intsr(*command)
    assert code == 2 and error.endswith("models: already exists; remove it or choose another output\n")
    assert intsr(*command, "--overwrite")[0] == 0


def test_other_folders_are_never_replaced(intsr: Run, identity_engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "mine").mkdir(parents=True)
    command = ("serve-repository", identity_engine, "-o", folder, "--overwrite")
    code, _, error = intsr(*command)
    assert code == 2 and "already holds something else" in error
    (folder / "mine").rmdir()
    assert intsr(*command)[0] == 0
    (folder / "mine").mkdir()
    code, _, error = intsr(*command)
    assert code == 2 and "already holds the folder mine" in error
    (folder / "intsr-repository.json").write_text("{}")
    assert intsr(*command)[0] == 2 and (folder / "identity").is_dir()


def test_bad_engines_are_refused_in_one_line_and_nothing_is_written(
    intsr: Run, make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    first, again = make_engine(), make_engine()
    spaced = make_engine().rename(tmp_path / "my photos.engine")
    text, altered = tmp_path / "text.engine", tmp_path / "altered.engine"
    text.write_text("no engine")
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 1
    altered.write_bytes(data)
    cases = {
        (first, again): "a second model called identity; expected different names; rename the file",
        (spaced,): "name 'my photos'; expected letters, digits and _ . - in the name",
        (text,): "text.engine: ",
        (altered,): "altered.engine: ",
        (tmp_path / "none.engine",): "none.engine: ",
    }
    for engines, expected in cases.items():
        code, _, error = intsr("serve-repository", *engines, "-o", tmp_path / "models")
        assert code == 2 and expected in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {spaced.name, text.name, altered.name}
