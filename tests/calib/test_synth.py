"""Models of random weights, on a small architecture with SD 2.1's structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from intsr.bundle import read_manifest
from intsr.calib.models.families.architecture import ARCHITECTURES, SD21, Architecture
from intsr.calib.models.open import load_model, open_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.synth import random_tensor, write_synthetic_model
from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.errors import UsageError
from intsr.export.pipeline import export_model
from intsr.files import sha256_from_path
from intsr.targets import lowering_from_name
from intsr.types import SYNTHETIC_NOTE

SMALL = Architecture(
    "small",
    {
        **SD21.unet,
        "block_out_channels": [32, 64],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 24,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
    },
    {
        **SD21.vae,
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
    },
    context_tokens=5,
)
TILE_PX = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "small"
    write_synthetic_model(SMALL, path, seed=1)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("engine")
    export_model(open_model(str(folder)), None, lowering_from_name("cpu"), TILE_PX, place / "onnx")
    compile_engine(place / "onnx", place / "small.engine", BuildOptions("cpu"))
    return place / "small.engine"


def test_it_loads_and_stays_finite(folder: Path) -> None:
    model = load_model(str(folder))
    assert model.spec.synthetic and model.spec.name == "small-random-1"
    assert model.context.shape == (1, 5, 24)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for network in reference_networks(model).values():
        with torch.no_grad():
            x = network(x)
        assert torch.isfinite(x).all()
        assert 0.01 < float(x.std()) < 10


def test_weights_are_stored_in_half_precision(folder: Path) -> None:
    for part in ("unet", "vae"):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        with safe_open(path, framework="np") as file:
            assert path.stat().st_mode & 0o777 == (folder / "intsr_model.json").stat().st_mode & 0o777
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
            assert file.metadata()["note"] == SYNTHETIC_NOTE


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    files = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    for seed, same in ((1, True), (2, False)):
        written = write_synthetic_model(SMALL, tmp_path / str(seed), seed)
        for file in files:
            assert (sha256_from_path(tmp_path / str(seed) / file) == sha256_from_path(folder / file)) is same, file
        assert written.size_bytes == sum((folder / file).stat().st_size for file in files)
    assert written.parameters["unet"] == sum(p.numel() for p in load_model(str(folder)).unet.parameters())
    # Whatever else is in a model.
    first, other = (random_tensor(name, (8, 8), 0) for name in ("unet.a.weight", "unet.b.weight"))
    assert not torch.equal(first, other) and torch.equal(first, random_tensor("unet.a.weight", (8, 8), 0))


def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        write_synthetic_model(SMALL, folder)


def test_no_room(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    for write in (
        lambda: write_synthetic_model(SMALL, tmp_path / "new"),
        lambda: compile_engine(engine.parent / "onnx", tmp_path / "other.engine", BuildOptions("cpu")),
    ):
        with pytest.raises(UsageError, match="GB free on its disk; expected about"):
            write()
    assert not list(tmp_path.iterdir())


def test_settings_without_the_key_are_of_real_weights(folder: Path, tiny_folder: Path) -> None:
    assert "synthetic" not in json.loads((tiny_folder / "intsr_model.json").read_text())
    assert open_model(str(tiny_folder)).spec.synthetic is False
    # Digests, which calibrations are bound to, do not hold it: the weights tell models apart.
    spec = open_model(str(folder)).spec
    assert repr(spec) == repr(replace(spec, synthetic=False))


@pytest.mark.slow
def test_everything_made_of_it_says_so(
    intsr: Callable[..., tuple[int, str, str]], folder: Path, engine: Path, tmp_path: Path
) -> None:
    assert read_manifest(engine).synthetic
    pixels = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
    (tmp_path / "lr").mkdir()
    Image.fromarray(pixels).save(tmp_path / "lr" / "a.png")
    verify = ("verify", engine, "--against", folder, "--images", tmp_path / "lr", "--precision", "f32")
    bench = ("bench", engine, "--size", TILE_PX, "--min-runs", 1, "--min-seconds", 0)
    upscale = ("upscale", engine, tmp_path / "lr" / "a.png", "-o")
    for i, command in enumerate([("info", folder), ("inspect", engine), verify, bench, upscale]):
        extra = [tmp_path / f"{i}.png"] if command is upscale else []
        code, out, err = intsr(*command, *extra)
        assert code == 0, err
        assert SYNTHETIC_NOTE in out + err, command[0]
        extra = [tmp_path / f"{i}-json.png"] if command is upscale else []
        code, out, err = intsr(*command, *extra, "--json")
        assert code == 0, err
        assert SYNTHETIC_NOTE in json.dumps(json.loads(out)), command[0]


def test_the_command(
    intsr: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sd21", SMALL)
    code, out, err = intsr("synth", "--arch", "sd21", "-o", tmp_path / "m", "--seed", 3, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["name"] == "small-random-3" and report["synthetic"] is True and report["note"] == SYNTHETIC_NOTE
    assert SYNTHETIC_NOTE in err
    assert open_model(str(tmp_path / "m")).spec.name == "small-random-3"
