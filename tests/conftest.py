"""Fixtures that several stages share. Models are made once a session; nothing here is written into the project."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.open import SRModel
    from intsr.export.fold.fold import FoldedNetwork

# Tensors of tests are small, and threads that wait for each other stall wherever something else runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts this in its background has Ctrl-C ignored, nohup a closed terminal, and every process below
# would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# What engines keep from one start to the next is the tests' own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="intsr-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from models import write_tiny_model

    return Path(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> SRModel:
    from intsr.calib.models.open import load_model

    return load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def adcsr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from adcsr import write_small_adcsr

    return write_small_adcsr(tmp_path_factory.mktemp("adcsr") / "model")


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from video_models import write_video_model

    return write_video_model(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="session")
def video_engine(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of target `cpu` in full precision, chunks of 5 frames, tiles of 8."""
    from video_engines import compile_video_engine

    return Path(compile_video_engine(video_folder, tmp_path_factory.mktemp("compiled") / "wan.engine"))


@pytest.fixture(scope="session")
def tiny_specialized(tiny_model: SRModel) -> dict[str, nn.Module]:
    """encoder, unet, decoder by name."""
    from intsr.export.fold.specialize import specialize
    from intsr.types import NETWORKS

    return {name: specialize(name, tiny_model).module for name in NETWORKS}


@pytest.fixture(scope="session")
def tiny_calibration(tiny_model: SRModel) -> Calibration:
    """MaxMin W8A8 over two random inputs of 16x16 low-resolution pixels."""
    import torch

    from intsr.calib.calibration.types import Calibration
    from intsr.calib.methods.maxmin import observe_maxmin
    from intsr.calib.models.phases import in_phases
    from intsr.types import Bits

    bits = Bits.parse("w8a8")
    generator = torch.Generator().manual_seed(3)
    batches = [torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2)]
    # Too narrow to be worth it: here they are tested.
    phases = tuple(f"{name}.up_blocks.0.upsamplers.0.conv" for name in ("unet", "vae.decoder"))
    sites = observe_maxmin(in_phases(tiny_model, phases), batches, bits, ("unet", "vae"))
    facts = ("tiny", tiny_model.digest, 2, 16, 0.0, 0, sites)
    return Calibration("maxmin", bits, ("unet", "vae"), *facts, phases=phases)


@pytest.fixture(scope="session")
def tiny_folded(tiny_model: SRModel, tiny_calibration: Calibration) -> dict[str, FoldedNetwork]:
    """encoder, unet, decoder by name."""
    from folding import fold

    return fold(tiny_model, tiny_calibration)


@pytest.fixture(scope="session")
def demo_model() -> SRModel:
    from intsr.calib.models.open import load_model

    return load_model("demo")


@pytest.fixture(scope="session")
def demo_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 128x128 low-resolution photograph that the demonstration model was not trained on."""
    from PIL import Image
    from skimage import data

    path = tmp_path_factory.mktemp("demo-picture") / "astronaut.png"
    Image.fromarray(data.astronaut()).resize((128, 128), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def intsr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """intsr("upscale", ...) -> (exit code, stdout, stderr), through the real entry point, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from intsr.cli.main import main

        monkeypatch.setattr(sys, "argv", ["intsr", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
