"""A model's folder to change; pictures to learn from; official checkpoints for the tests of their import."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from passionsr import save_checkpoints, write_reference_model
from PIL import Image

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "passionsr_reference"
PASSIONSR_TILE_PX = 8


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more, and a resumed run must have as many as it began with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four small smooth pictures to learn from."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def passionsr_files(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The UNet's and the VAE's checkpoint of the tiny model, for tiles of 8."""
    return save_checkpoints(tiny_model, tmp_path_factory.mktemp("official"), PASSIONSR_TILE_PX)


@pytest.fixture(scope="session", params=["w8a8", "w6a6"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the official code computed: folder, bits, the base model, the checkpoint's calibration, tensors."""
    from safetensors.torch import load_file

    from intsr.calib.models.open import load_model
    from intsr.calib.passionsr.forward import passionsr_model
    from intsr.calib.passionsr.import_checkpoint import import_passionsr
    from intsr.calib.passionsr.types import PassionSRQuantizers
    from intsr.types import Bits

    folder = REFERENCE / request.param
    if not folder.is_dir():
        pytest.skip("reference data is not here")
    written = write_reference_model(folder, tmp_path_factory.mktemp(f"reference-{request.param}"))
    model, bits = load_model(str(written)), Bits.parse(request.param)
    paths = [folder / f"{part}_ckpt_merge_saw_sep.pth" for part in ("unet", "vae")]
    calibration = import_passionsr(model, paths, bits, PASSIONSR_TILE_PX)
    tensors = {p.stem: load_file(p) for p in folder.glob("*.safetensors") if p.stem != "base_ldm"}
    official = passionsr_model(model, PassionSRQuantizers.from_calibration(calibration))
    return SimpleNamespace(
        folder=folder, bits=bits, model=model, paths=paths, calibration=calibration, official=official, **tensors
    )
