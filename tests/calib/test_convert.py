"""Pickles to safetensors, and pickles that are more than data."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from intsr.calib.models.convert import LDM, TENSORS, convert
from intsr.calib.models.tensor_files import VALUES_KEY, read_checkpoint
from intsr.errors import ModelError, UsageError


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_nested_names_and_values(tmp_path: Path) -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    content = {
        "state": OrderedDict(a=weights, b=weights.t(), c={"d": weights[0], "e": torch.tensor(3)}),
        "list": [torch.ones(2), torch.zeros(1)],
        "names": ["x", "y"],
        "kinds": {"b", "a"},
        "rank": 4,
        "note": None,
        "dtype": torch.float16,
    }
    torch.save(content, tmp_path / "in.pth")
    written = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    assert set(got) == {"state.a", "state.b", "state.c.d", "state.c.e", "list.0", "list.1"}
    assert torch.equal(got["state.a"], weights) and torch.equal(got["state.b"], weights.t())
    assert torch.equal(got["state.c.d"], weights[0]) and got["state.c.e"].dtype == torch.int64
    with safe_open(tmp_path / "out.safetensors", framework="np") as file:
        values = json.loads(file.metadata()[VALUES_KEY])
    expected = {"names": ["x", "y"], "kinds": ["a", "b"], "rank": 4, "note": None, "dtype": "torch.float16"}
    assert values == expected
    assert (written.kind, written.tensors, written.values) == (TENSORS, 6, 5)
    # What it reads back is what it read from the pickle.
    assert read_checkpoint(tmp_path / "out.safetensors").values == read_checkpoint(tmp_path / "in.pth").values


def test_an_ldm_checkpoint_loses_its_wrapper(tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    torch.save({"state_dict": {name: torch.ones(2)}, "global_step": 7}, tmp_path / "in.ckpt")
    assert convert(tmp_path / "in.ckpt", tmp_path / "out.safetensors").kind == LDM
    assert set(load_file(tmp_path / "out.safetensors")) == {name}


def test_files_of_before_torchs_zip_format(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "n": 3}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(tmp_path / "old.pkl")
    assert torch.equal(checkpoint.tensors["a"], torch.ones(2)) and checkpoint.values == {"n": 3}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "it-ran"
    content = {"a": torch.ones(2), "b": RunsCode(trace)}
    torch.save(content, tmp_path / "evil.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"refused: unpickling it would run code \(posix\.system\)") as error:
        convert(tmp_path / "evil.pkl", tmp_path / "out.safetensors")
    assert "\n" not in str(error.value)
    assert not trace.exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as plain data"),
        (bytes(range(256)) * 9, "cannot be read as plain data"),
        (pickle.dumps({"a": 1}), "cannot be read as plain data"),
        ({"a": 1}, "no tensors"),
        (torch.ones(3), "a Tensor; expected names and their tensors"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"two things called a\.b"),
        ({"a": torch.ones(3).to_sparse()}, "expected a plain tensor"),
    ],
)
def test_files_that_cannot_be_converted(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "in.pkl"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelError, match=message) as error:
        convert(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pkl"]


def test_outputs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "in.pkl")
    for output, message in (("out.pkl", "suffix"), ("in.pkl/out.safetensors", "cannot write")):
        with pytest.raises(UsageError, match=message):
            convert(tmp_path / "in.pkl", tmp_path / output)
    convert(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    with pytest.raises(UsageError, match="is the input"):
        convert(tmp_path / "out.safetensors", tmp_path / "out.safetensors")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match="GB free"):
        convert(tmp_path / "in.pkl", tmp_path / "other.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"in.pkl", "out.safetensors"}


def test_the_command_says_what_it_wrote(intsr: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "rank": 4}, tmp_path / "in.pkl")
    code, out, err = intsr("convert", tmp_path / "in.pkl", "-o", tmp_path / "out.safetensors", "--json")
    assert code == 0 and "out.safetensors: tensors, 1 tensors and 1 values" in err
    report = json.loads(out)
    assert (report["kind"], report["tensors"], report["values"]) == ("tensors", 1, 1)
    assert report["size_bytes"] == (tmp_path / "out.safetensors").stat().st_size
