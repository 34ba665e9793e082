"""docs/use/troubleshooting.md: each heading is a message that the program really gives, and here it gives it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tifffile
from PIL import Image

from intsr import bundle
from intsr.runtime.engine import Engine

PAGE = Path(__file__).parents[2] / "docs" / "use" / "troubleshooting.md"
Run = Callable[..., tuple[int, str, str]]


class Machine:
    """What the ways to go wrong need: the command, engines, a folder with a photograph."""

    def __init__(self, intsr: Run, make_engine: Callable[..., Path], photo: Path) -> None:
        self.intsr, self.make_engine, self.photo, self.folder = intsr, make_engine, photo, photo.parent

    def upscale(self, *inputs: Path, to: str = "out.png", options: tuple[object, ...] = (), **engine: Any) -> str:
        """What stderr gets. inputs: else the photograph. engine: `engine`, or of `make_engine`."""
        opened = engine.pop("engine", None) or self.make_engine(engine.pop("target", "onnxruntime"), **engine)
        return self.intsr("upscale", opened, *(inputs or [self.photo]), "-o", self.folder / to, *options)[2]

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def _transparent(machine: Machine) -> str:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:10] = 200
    path = machine.folder / "a.png"
    Image.fromarray(pixels).save(path)
    return machine.upscale(path, to="a.jpg")


def _flipped_byte(machine: Machine) -> str:
    content = bytearray(machine.make_engine().read_bytes())
    content[len(content) // 3] ^= 255
    return machine.upscale(engine=machine.file("b.engine", content))


def _twice(machine: Machine) -> str:
    folder = machine.folder / "in"
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.open(machine.photo).save(folder / name)
    return machine.upscale(folder, to="out", options=("--format", "png"))


def _other_calibration(machine: Machine) -> str:
    from intsr.calib.calibration.files import save_calibration
    from intsr.calib.calibration.types import Calibration
    from intsr.types import Bits

    output = machine.folder / "calibration"
    save_calibration(Calibration("lbq", Bits(6, 6), ("vae",), "demo", "ab" * 32, 9, 128, 1.0, 1), output)
    return machine.intsr("calibrate", "demo", "--images", machine.folder, "-o", output)[2]


def _huge(machine: Machine) -> str:
    # A header is enough: nothing is decoded.
    path = machine.file("huge.bmp", b"")
    Image.new("1", (20000, 10000)).save(path)
    return machine.upscale(path)


def _tiff(machine: Machine, pixels: np.ndarray, photometric: int) -> str:
    tifffile.imwrite(machine.folder / "a.tif", pixels, photometric=photometric)
    return machine.upscale(machine.folder / "a.tif")


def _overwritten(machine: Machine) -> str:
    # By a program that does it in the middle of a call; a large engine, as it were.
    engine, start = machine.make_engine("cpu"), Engine.start

    def overwrite_and_start(opened: Engine, *arguments: Any) -> Any:
        engine.write_bytes(bytes(100))
        return start(opened, *arguments)

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(bundle, "COPIED_BYTES", 0)
        changed.setattr(Engine, "start", overwrite_and_start)
        return machine.upscale(engine=engine)


def _no_memory_to_open(machine: Machine) -> str:
    error = RuntimeError("Exception from src/inference:\nstd::bad_alloc")
    with (
        patch("openvino.Core.compile_model", side_effect=error),
        patch("openvino.Core.import_model", side_effect=error),
    ):
        return machine.upscale(target="cpu")


def _film(machine: Machine) -> Path:
    from films import MP4, scenes, write_film

    write_film(machine.folder / "film.mp4", scenes(6, 0), MP4)
    return machine.folder / "film.mp4"


def _other_film(machine: Machine) -> str:
    source = _film(machine)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("intsr.runtime.batch.films.join", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            machine.upscale(source, to="out.mp4")
    return machine.upscale(source, to="out.mp4", options=("--crf", "40"))


# name of the entry -> what makes it
WAYS: dict[str, Callable[[Machine], str]] = {
    "no-file": lambda m: m.upscale(m.folder / "gone.png"),
    "empty": lambda m: m.upscale(m.file("a.png", b"")),
    "no-picture": lambda m: m.upscale(m.file("a.png", b"words")),
    "other-kind": lambda m: m.upscale(m.file("a.png", b"GIF89a" + bytes(20))),
    "broken": lambda m: m.upscale(m.file("a.png", m.photo.read_bytes()[:2000])),
    "raw": lambda m: _tiff(m, np.zeros((20, 20), np.uint16), photometric=32803),
    "tiff": lambda m: _tiff(m, np.zeros((20, 20), np.float32), photometric=1),
    "pixel-limit": _huge,
    "exists": lambda m: m.upscale() and m.upscale(),
    "other-calibration": _other_calibration,
    "collision": _twice,
    "own-input": lambda m: m.upscale(m.folder, to=""),
    "no-pictures": lambda m: m.upscale(m.file("empty/a.txt", b"").parent, to="out"),
    "several": lambda m: m.upscale(m.photo, m.folder),
    "transparent": _transparent,
    "memory": lambda m: m.upscale(options=("--memory", "1M")),
    "tile": lambda m: m.upscale(options=("--tile", 48)),
    "unwritable": lambda m: m.upscale(to=f"{m.file('file', b'').name}/out.png"),
    "flat": lambda m: m.upscale(decoder_gain=0.0),
    "nan": lambda m: m.upscale(decoder_gain=float("nan")),
    "no-engine": lambda m: m.upscale(engine=m.file("a.engine", b"words")),
    "altered": _flipped_byte,
    "overwritten": _overwritten,
    "engine-memory": _no_memory_to_open,
    "no-provider": lambda m: m.upscale(options=("--device", "cuda")),
    "dash": lambda m: m.intsr("compile", "demo", "--bits", "fp", "-o", "-")[2],
    "newer": lambda m: m.upscale(schema_version=99),
    "no-film": lambda m: m.upscale(m.file("a.mp4", b"words" * 1000), to="out.mp4"),
    "sound": lambda m: m.upscale(_film(m), to="out.webm"),
    "encoder": lambda m: m.upscale(_film(m), to="out.mp4", options=("--codec", "libx266")),
    "other-film": _other_film,
    "no-ranges": lambda m: m.intsr("compile", "demo", "-o", m.folder / "a.engine")[2],
}


def _entries() -> dict[str, str]:
    """Anchor -> heading."""
    found = re.findall(r'^<a id="([a-z-]+)"></a>\n### `(.+)`$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(re.findall(r"^### ", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    return dict(found)


def _says(heading: str, err: str) -> bool:
    pattern = ".+".join(map(re.escape, heading.split("…")))
    return re.fullmatch(f"intsr: error: {pattern}", err.strip()) is not None


@pytest.mark.parametrize("name", WAYS)
def test_entries_are_what_the_program_says(name: str, intsr: Run, make_engine, photo_path: Path) -> None:
    err = WAYS[name](Machine(intsr, make_engine, photo_path))
    assert _says(_entries()[name], err), err


def test_no_gpu(intsr: Run, machine, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if find_library("cuda"):
        pytest.skip("there is a driver here")
    engine = machine.engine("tensorrt-rtx")
    monkeypatch.undo()
    for call in (("upscale", engine, photo_path, "-o", tmp_path / "out.png"), ("bench", engine, "--alone")):
        code, out, err = intsr(*call)
        assert (code, out, _says(_entries()["no-gpu"], err)) == (3, "", True), err
    assert "tensorrt_rtx" not in sys.modules, "it is loaded behind the checks"


def test_an_old_driver_and_another_gpu(upscale: Run, machine, photo_path: Path, tmp_path: Path) -> None:
    machine.gpu.capability = (10, 0)
    _, _, err = upscale(photo_path, "-o", tmp_path / "out.png", engine=machine.engine("tensorrt-rtx"))
    assert _says(_entries()["other-gpu"], err), err
    machine.driver.version = 12080
    _, _, err = upscale(photo_path, "-o", tmp_path / "out.png", engine=machine.engine())
    assert _says(_entries()["old-driver"], err), err


def test_every_entry_is_tried() -> None:
    assert set(_entries()) == {*WAYS, "no-gpu", "old-driver", "other-gpu"}
    assert not _says(_entries()["empty"], "intsr: error: a.png: no such file")
