"""A model's folder to change; official checkpoints for the tests of their import."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from passionsr import save_checkpoints, write_reference_model

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "passionsr_reference"
PASSIONSR_TILE_PX = 8


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


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
