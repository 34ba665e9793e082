"""Video models of random weights, on a small architecture with Wan's structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from video_models import TRANSFORMER, WIDE_VAE

from intsr.calib.models import synth
from intsr.calib.models.families.wan import VIDEO_ARCHITECTURES, WAN21_1_3B, VideoArchitecture
from intsr.calib.models.synth import write_synthetic_model
from intsr.calib.models.video import load_video_model
from intsr.calib.models.weights import empty_network
from intsr.export.fold.video.transformer import specialize_transformer
from intsr.export.fold.video.vae import specialize_decoder, specialize_encoder
from intsr.files import sha256_from_path
from intsr.types import SYNTHETIC_NOTE

SMALL = VideoArchitecture(
    "small-wan",
    {"_class_name": "WanTransformer3DModel", **TRANSFORMER, "num_layers": 4, "ffn_dim": 96},
    {"_class_name": "AutoencoderKLWan", **WIDE_VAE},
    context_tokens=5,
)
SHARD_BYTES = 1 << 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "SHARD_BYTES", SHARD_BYTES)
        write_synthetic_model(SMALL, path, seed=1)
    return path


def test_it_loads_and_stays_finite(folder: Path) -> None:
    model = load_video_model(str(folder))
    assert model.spec.synthetic and model.spec.name == "small-wan-random-1"
    assert model.context.shape == (1, 5, 16)
    x = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    makers = (specialize_encoder, lambda m: specialize_transformer(m, (1, 4, 4)), specialize_decoder)
    for maker in makers:
        result = maker(model).module(x)
        x = result if isinstance(result, torch.Tensor) else result[0]
        assert torch.isfinite(x).all()
        assert 0.01 < float(x.std()) < 10


def test_files_are_bounded_and_diffusers_reads_them(folder: Path) -> None:
    shards = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    for path in shards:
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
            assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118
        assert sum(sizes) <= SHARD_BYTES or len(sizes) == 1
    ours = load_video_model(str(folder))
    for cls, part in ((WanTransformer3DModel, "transformer"), (AutoencoderKLWan, "vae")):
        theirs = cls.from_pretrained(folder / part, torch_dtype=torch.float32).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(ours, part).state_dict().items())


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "SHARD_BYTES", SHARD_BYTES)
    files = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    for seed, same in ((1, True), (2, False)):
        written = write_synthetic_model(SMALL, tmp_path / str(seed), seed)
        for file in files:
            assert (sha256_from_path(tmp_path / str(seed) / file) == sha256_from_path(folder / file)) is same, file
        assert written.size_bytes == sum((folder / file).stat().st_size for file in files)


def test_no_more_than_one_file_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "SHARD_BYTES", SHARD_BYTES)
    held: list[int] = []
    make = synth.random_tensor
    alive: list[torch.Tensor] = []

    def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        tensor = make(name, shape, seed)
        held.append(sum(2 * t.numel() for t in alive))
        alive.append(tensor)
        return tensor

    def save(path: Path, tensors: dict[str, torch.Tensor], metadata: object) -> None:
        alive.clear()
        path.write_bytes(b"")

    monkeypatch.setattr(synth, "random_tensor", random_tensor)
    monkeypatch.setattr("intsr.calib.models.save.write_safetensors", save)
    write_synthetic_model(SMALL, tmp_path / "m")
    assert 0 < max(held) <= SHARD_BYTES


def test_full_size_is_wans_own() -> None:
    transformer, vae = (
        empty_network(part, WAN21_1_3B.networks[part], Path("wan")) for part in ("transformer", "vae")
    )
    assert sum(p.numel() for p in transformer.parameters()) == 1_418_996_800
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    assert (len(transformer.blocks), transformer.blocks[0].attn1.heads) == (30, 12)


def test_the_command(
    intsr: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VIDEO_ARCHITECTURES, "wan2.1-1.3b", SMALL)
    code, out, err = intsr("synth", "--arch", "wan2.1-1.3b", "-o", tmp_path / "m", "--seed", 3, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["name"] == "small-wan-random-3" and report["synthetic"] is True
    code, out, err = intsr("info", tmp_path / "m", "--size", 64, "--frames", 5)
    assert code == 0 and SYNTHETIC_NOTE in out, err
