"""A small SD 2.1, which families' files are made for."""

from __future__ import annotations

from types import SimpleNamespace

import families
import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    unet, vae = families.small_networks()
    folder = families.write_base(tmp_path_factory.mktemp("base"), unet, vae)
    return SimpleNamespace(unet=unet, vae=vae, folder=folder, context=folder / "context.safetensors")
