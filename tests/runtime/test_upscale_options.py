"""`intsr upscale`: arguments in each other's place, options without effect, and what is said while it works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.cli import console
from intsr.errors import EXIT_USAGE
from intsr.runtime.commands import upscale_shows as shows

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "jpg"], "--format: has no effect: -o "),
        (["--suffix", "_x4"], "--suffix: has no effect: -o "),
        (["--name", "{stem}_new{ext}"], "--name: has no effect: -o "),
        (["-r"], "-r: has no effect: no input is a folder"),
        (["--quality", 10], "--quality: has no effect: no output is JPEG, WebP or AVIF"),
        (["--cuda-backend", "pycuda"], "--cuda-backend: has no effect: the engine is for target onnxruntime"),
    ],
)
def test_options_without_effect_are_refused(upscale: Run, photo_path: Path, tmp_path: Path, options, message) -> None:
    code, _, err = upscale(photo_path, "-o", tmp_path / "nn.png", *options)
    assert (code, err.count("\n"), (tmp_path / "nn.png").exists()) == (EXIT_USAGE, 1, False)
    assert err.startswith(f"intsr: error: {message}")


def test_options_with_effect_are_not(upscale: Run, photo_path: Path, tmp_path: Path) -> None:
    options = ("-r", "--suffix", "_x4", "--format", "jpg", "--quality", 10)
    assert upscale(tmp_path, "-o", tmp_path / "out", *options)[0] == 0
    assert (tmp_path / "out/photo_x4.jpg").is_file()
    assert "gone: no such file" in upscale(tmp_path / "gone", "-r", "-o", tmp_path / "out2")[2]


def test_a_picture_in_the_engines_place(intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.png"
    code, _, err = intsr("upscale", photo_path, "-o", output)
    assert (code, err) == (
        EXIT_USAGE,
        f"intsr: error: {photo_path}: is a picture; expected the engine first; "
        f"write intsr upscale ENGINE {photo_path} -o ...\n",
    )
    code, _, err = intsr("upscale", photo_path, identity_engine, "-o", output)
    assert (code, f"write intsr upscale {identity_engine} {photo_path} -o" in err) == (EXIT_USAGE, True)
    code, _, err = intsr("upscale", identity_engine, "-o", output)
    assert (code, err) == (EXIT_USAGE, "intsr: error: Missing argument 'INPUT...'; see intsr upscale --help\n")
    renamed = tmp_path / "engine.png"
    renamed.write_bytes(identity_engine.read_bytes())
    assert intsr("upscale", renamed, photo_path, "-o", output)[0] == 0


def test_devices_are_listed(intsr: Run, machine) -> None:
    code, out, _ = intsr("upscale", "--list-devices")
    cpu, *gpus = out.splitlines()
    assert (code, gpus) == (0, ["cuda:0  GeForce One", "cuda:1  GeForce Two"])
    assert cpu.startswith("cpu  ") and cpu.endswith(" threads")
    machine.gpu.device_names = ()
    assert intsr("upscale", "--list-devices")[1:] == (f"{cpu}\n", "GPU: the driver sees none\n")


def test_a_slash_makes_a_folder(upscale: Run, photo_path: Path, tmp_path: Path) -> None:
    assert upscale(photo_path, "-o", f"{tmp_path / 'x0.xyz'}/")[0] == 0
    assert (tmp_path / "x0.xyz/photo.png").is_file()


@pytest.mark.parametrize("arguments", [("--outscale", "3x"), ("--scale", "x3"), ("-s", "3.0"), ("-s", "3X")])
def test_times_may_be_written_with_an_x(upscale: Run, photo_path: Path, tmp_path: Path, arguments) -> None:
    assert upscale(photo_path, "-o", tmp_path / "out.png", *arguments)[0] == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (213, 159)


def test_a_large_picture_is_announced_and_reported_on_without_a_terminal(
    upscale: Run, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(np.tile(photo, (2, 2, 1))).save(source)
    monkeypatch.setattr(shows, "_MANY_TILES", 99)
    seconds = iter(range(10_000))
    monkeypatch.setattr(console, "_now", lambda: float(next(seconds)))
    code, _, err = upscale(source, "-o", tmp_path / "a.png")
    lines = err.splitlines()
    assert (code, lines[0]) == (0, f"{source}: 142x106 -> 284x212, 108 tiles")
    assert lines[1:4] == [
        "Upscaling: 30 of 108, about 1 min left",
        "Upscaling: 60 of 108, about 48 s left",
        "Upscaling: 90 of 108, about 18 s left",
    ]
    assert len(lines) == 5 and " -> " in lines[4]
    assert upscale(source, "-o", tmp_path / "b.png", "-q")[2] == ""
