"""`intsr upscale`: exit codes, isolation, resuming, and nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import bicubic
from PIL import Image

from intsr import memory
from intsr.errors import EXIT_ENGINE_MISMATCH, EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY, EXIT_SOME_FAILED, EXIT_USAGE
from intsr.runtime.batch import files as upscale_file
from intsr.runtime.pictures import writer as image_stream

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.png"


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """With a.png, b.png and c.png."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(photo).save(tmp_path / "in" / name)
    return tmp_path / "in"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_picture(upscale: Run, photo: np.ndarray, photo_path: Path, output: Path) -> None:
    assert upscale(photo_path, "-o", output)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(output)), bicubic(photo))


def test_json_is_one_line_a_picture(upscale: Run, photo_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    code, out, err = upscale(photo_path, bad, "-o", tmp_path / "out", "--json")
    assert (code, str(bad) in err) == (EXIT_SOME_FAILED, True)
    good_line, bad_line = (json.loads(line) for line in out.splitlines())
    expected = {"status": "ok", "width": 142, "height": 106, "tile_px": 16, "tiles": 30, "error": None, "notes": []}
    assert good_line.pop("ms") > 0
    assert good_line == {"input": str(photo_path), "output": str(tmp_path / "out/photo.png"), **expected}
    assert (bad_line["status"], bad_line["width"]) == ("failed", None) and "not a picture" in bad_line["error"]


def test_a_bad_picture_does_not_stop_the_others(upscale: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    Image.open(folder / "a.png").save(folder / "sub" / "d.jpg")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    (folder / "c.png").write_bytes(b"")
    code, _, err = upscale(folder, "-r", "-o", tmp_path / "out")
    assert (code, _files(tmp_path / "out")) == (EXIT_SOME_FAILED, ["a.png", "sub/d.jpg"])
    assert err.count("intsr: error:") == 2 and "2 ok, 2 failed" in err


def test_bad_input_is_one_line_and_leaves_nothing(
    upscale: Run, photo_path: Path, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = photo_path.read_bytes(), tmp_path / "bad.png"
    for data in (None, b"", whole[:3000], b"hello" * 99, whole):
        if data is not None:
            bad.write_bytes(data)
        # The last one has too many pixels.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 if data == whole else 10**6)
        code, out, err = upscale(bad, "-o", output)
        assert (code, out, err.count("\n")) == (EXIT_SOME_FAILED, "", 1)
        assert err.startswith(f"intsr: error: {bad}: ")
        assert not output.parent.exists()


def test_existing_outputs_need_a_word(upscale: Run, folder: Path, tmp_path: Path) -> None:
    output, before = tmp_path / "out", b"done before"
    output.mkdir()
    (output / "a.png").write_bytes(before)
    code, _, err = upscale(folder, "-o", output)
    assert (code, _files(output)) == (EXIT_USAGE, ["a.png"]) and "--skip-existing or --overwrite" in err
    code, out, err = upscale(folder, "-o", output, "--skip-existing", "--json")
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["skipped", "ok", "ok"]
    assert (code, (output / "a.png").read_bytes()) == (0, before) and "2 ok, 1 skipped" in err
    assert upscale(folder, "-o", output, "--overwrite", "--skip-existing")[0] == EXIT_USAGE
    assert upscale(folder, "-o", output, "--overwrite")[0] == 0
    assert Image.open(output / "a.png").size == (142, 106)


@pytest.mark.parametrize(
    ("option", "answer"),
    [((), (EXIT_SOME_FAILED, "failed", True)), (("--skip-existing",), (0, "skipped", True)),
     (("--overwrite",), (0, "ok", False))],
)  # fmt: skip
def test_a_file_that_appears_while_one_is_made(
    upscale: Run, photo_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, option, answer
) -> None:
    # Somebody else writes it between the check before the first picture and the end of this one.
    check = image_stream.check_written

    def written_by_another(*args) -> None:
        check(*args)
        output.write_bytes(b"another's")

    monkeypatch.setattr(image_stream, "check_written", written_by_another)
    code, out, _ = upscale(photo_path, "-o", output, "--json", *option)
    assert (code, json.loads(out)["status"], output.read_bytes() == b"another's") == answer
    assert _files(output.parent) == ["out.png"]


def test_alpha_and_orientation_come_through(upscale: Run, photo: np.ndarray, tmp_path: Path, output: Path) -> None:
    source, image = tmp_path / "in.png", Image.fromarray(photo)
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source, exif=exif)
    assert upscale(source, "-o", output)[0] == 0
    with Image.open(output) as written:
        assert (written.mode, written.size) == ("RGBA", (106, 142))
        assert written.getexif().get(0x0112, 1) == 1
        expected = alpha.transpose(Image.Transpose.ROTATE_270).resize((106, 142), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(written.getchannel("A")), np.asarray(expected))
    code, _, err = upscale(source, "-o", output.with_suffix(".jpg"))
    assert (code, "transparent" in err, _files(output.parent)) == (EXIT_SOME_FAILED, True, ["out.png"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", 16], "--overlap"),
        (["--batch-tiles", 2], "--batch-tiles: 2; expected 1"),
        (["--threads", 0], "--threads"),
        (["--quality", 101], "--quality: 101; expected 1 to 100"),
        (["-s", "17x"], "--outscale: 17.0; expected above 0, up to 16"),
        (["--precision", "bf16"], "--precision"),
        (["--color-fix", "sepia"], "sepia"),
        (["--no-such-option"], "no-such-option"),
        # Only plain digits are.
        (["--tile", "\u0661\u0666"], "expected auto, or a number of pixels"),
        *((["-s", text], "for example 2 or 2x") for text in ("x", "2xx", "x2x", "two")),
    ],
)
def test_wrong_options_are_usage_errors(upscale: Run, photo_path: Path, output: Path, options, message) -> None:
    code, _, err = upscale(photo_path, "-o", output, *options)
    assert (code, message in err, err.count("\n"), output.parent.exists()) == (EXIT_USAGE, True, 1, False)


def test_engines_that_do_not_run(upscale: Run, make_engine, photo_path: Path, output: Path) -> None:
    newer, flipped = make_engine("onnxruntime", library_version="2099.1"), make_engine("onnxruntime")
    data = bytearray(flipped.read_bytes())
    data[-1000] ^= 1
    flipped.write_bytes(data)
    for engine, expected in ((newer, EXIT_ENGINE_MISMATCH), (flipped, EXIT_USAGE)):
        code, _, err = upscale(photo_path, "-o", output, engine=engine)
        assert (code, err.count("\n"), output.parent.exists()) == (expected, 1, False)


def test_too_little_memory(upscale: Run, photo_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    code, _, err = upscale(photo_path, "-o", output)
    assert (code, "pixels out need about" in err) == (EXIT_OUT_OF_MEMORY, True)

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.undo()
    monkeypatch.setattr(upscale_file, "read_image", exhausted)
    code, _, err = upscale(photo_path, "-o", output)
    assert (code, "out of memory" in err) == (EXIT_OUT_OF_MEMORY, True)


def test_a_black_file_is_never_written(upscale: Run, make_engine, photo_path: Path, output: Path) -> None:
    for gain, message in ((float("nan"), "NaN"), (0.0, "flat")):
        code, _, err = upscale(photo_path, "-o", output, engine=make_engine(decoder_gain=gain))
        assert (code, message in err, output.exists()) == (EXIT_SOME_FAILED, True, False)


def test_interrupted_while_writing(
    upscale: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are kept, as another might get the number of one that is gone.
    write, written = image_stream.PictureWriter.write, list[image_stream.PictureWriter]()

    def interrupted(writer: image_stream.PictureWriter, rows: np.ndarray) -> None:
        written.append(writer)
        write(writer, rows)
        if len(set(map(id, written))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(image_stream.PictureWriter, "write", interrupted)
    assert upscale(folder, "-o", tmp_path / "out")[0] == EXIT_INTERRUPTED
    files = _files(tmp_path / "out")
    assert "a.png" in files and "b.png" not in files
    for name in files:
        with Image.open(tmp_path / "out" / name) as image:
            image.load()


# The command line as it is, but it says when the tiles have begun.
_ANNOUNCING = """
import intsr.runtime.upscaler as upscaler
run_tiles = upscaler.Upscaler.run_tiles
def announce(*args):
    print("running", flush=True)
    return run_tiles(*args)
upscaler.Upscaler.run_tiles = announce
from intsr.cli.entry import run
run()
"""


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_ctrl_c_for_real(identity_engine: Path, tmp_path: Path, times: int) -> None:
    """A picture of thousands of tiles, signals in its middle: exit code 130 and not a file more."""
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (2000, 2000, 3)).astype(np.uint8)).save(source, compress_level=0)
    before = _files(tmp_path)
    command = [sys.executable, "-c", _ANNOUNCING, "upscale", str(identity_engine), str(source), "-qo", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.2)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (EXIT_INTERRUPTED, "intsr: interrupted")
    assert _files(tmp_path) == before


def test_a_fault_in_the_library_is_that_pictures_alone(
    upscale: Run, make_engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intsr.runtime.backends.openvino.backend import OpenVINONetwork

    for path in folder.iterdir():
        Image.open(path).crop((0, 0, 16, 16)).save(path)
    run, count = OpenVINONetwork.run, iter(range(100))

    class Broken:
        def start_async(self, *_: object, **__: object) -> None:
            raise RuntimeError("somewhere in C++\nCheck 'false' failed")

        def wait(self) -> None:
            pass

    def sometimes(network: OpenVINONetwork, x: np.ndarray) -> np.ndarray:
        if next(count) != 4:
            return run(network, x)
        with monkeypatch.context() as broken:
            broken.setattr(network, "_request", Broken())
            return run(network, x)

    monkeypatch.setattr(OpenVINONetwork, "run", sometimes)
    code, _, err = upscale(folder, "-o", tmp_path / "out", "-q", engine=make_engine("cpu"))
    assert (code, err.count("\n"), _files(tmp_path / "out")) == (EXIT_SOME_FAILED, 1, ["a.png", "c.png"])
    assert "OpenVINO cannot run it (Check 'false' failed)" in err


def test_names_do_nothing_to_the_terminal(upscale: Run, tmp_path: Path) -> None:
    name = tmp_path / "new\nline\x1b[2J.png"
    name.write_bytes(b"")
    _, _, err = upscale(name, "-o", tmp_path / "out.png")
    assert err.count("\n") == 1 and "new\\nline\\x1b[2J.png: file is empty" in err


def test_a_cpu_engine_upscales_where_the_compiler_is_not_installed(
    make_engine, photo_path: Path, output: Path
) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers", "onnx", "onnxruntime", "safetensors")))
from intsr.cli.main import main
main()
"""
    command = [sys.executable, "-c", code, "upscale", make_engine("cpu"), photo_path, "-o", output]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, output.is_file()) == (0, True), result.stderr
