"""Official checkpoints for the tests of their import; see `tests/support/official.py`."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support" / "official.py"
REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "passionsr_reference"
OFFICIAL_TILE_PX = 8


@pytest.fixture(scope="session")
def official_support() -> Any:
    return SimpleNamespace(**runpy.run_path(str(SUPPORT)))


@pytest.fixture(scope="session")
def official_files(official_support: Any, tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The UNet's and the VAE's checkpoint of the tiny model, for tiles of 8."""
    return official_support.save_checkpoints(tiny_model, tmp_path_factory.mktemp("official"), OFFICIAL_TILE_PX)


@pytest.fixture(scope="session", params=["w8a8", "w6a6"])
def reference(request: pytest.FixtureRequest, official_support: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the official code computed: folder, bits, the base model, the checkpoint's calibration, tensors."""
    from safetensors.torch import load_file

    from intsr.calib.models.open import load_model
    from intsr.calib.passionsr.forward import official_model
    from intsr.calib.passionsr.import_checkpoint import import_official
    from intsr.types import Bits

    folder = REFERENCE / request.param
    if not folder.is_dir():
        pytest.skip("reference data is not here")
    written = official_support.write_reference_model(folder, tmp_path_factory.mktemp(f"reference-{request.param}"))
    model, bits = load_model(str(written)), Bits.parse(request.param)
    paths = [folder / f"{part}_ckpt_merge_saw_sep.pth" for part in ("unet", "vae")]
    calibration = import_official(model, paths, bits, OFFICIAL_TILE_PX)
    tensors = {p.stem: load_file(p) for p in folder.glob("*.safetensors") if p.stem != "base_ldm"}
    official = official_model(model, calibration.official_layers, calibration.official_attentions)
    return SimpleNamespace(
        folder=folder, bits=bits, model=model, paths=paths, calibration=calibration, official=official, **tensors
    )
