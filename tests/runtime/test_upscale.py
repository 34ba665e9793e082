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
from PIL import Image

from intsr import memory
from intsr.errors import EXIT_ENGINE_MISMATCH, EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY, EXIT_SOME_FAILED, EXIT_USAGE
from intsr.runtime.batch import files as upscale_file
from intsr.runtime.pictures import writer as image_stream

Run = Callable[..., tuple[int, str, str]]


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_picture(intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    assert intsr("upscale", identity_engine, photo_path, "-o", output)[0] == 0
    with Image.open(photo_path) as image:
        expected = image.resize((142, 106), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), np.asarray(expected))


def test_json_is_one_line_a_picture(intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    code, out, err = intsr("upscale", identity_engine, photo_path, bad, "-o", tmp_path / "out", "--json")
    assert code == EXIT_SOME_FAILED
    good_line, bad_line = (json.loads(line) for line in out.splitlines())
    assert set(good_line) >= {"input", "output", "status", "width", "height", "tile_px", "ms", "error"}
    assert (good_line["status"], good_line["width"], good_line["height"], good_line["tile_px"]) == (
        "ok",
        142,
        106,
        16,
    )
    assert (good_line["error"], good_line["ms"] > 0) == (None, True)
    assert (bad_line["status"], bad_line["width"]) == ("failed", None)
    assert "not a picture" in bad_line["error"]
    assert str(bad) in err


def test_a_bad_picture_does_not_stop_the_others(
    intsr: Run, identity_engine: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(photo).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    (folder / "c.png").write_bytes(b"")
    Image.fromarray(photo).save(folder / "sub" / "d.jpg")
    code, _, err = intsr("upscale", identity_engine, folder, "-r", "-o", output)
    assert code == EXIT_SOME_FAILED
    assert _files(output) == ["a.png", "sub/d.jpg"]
    assert err.count("intsr: error:") == 2
    assert "2 ok, 2 failed" in err


def test_bad_input_is_one_line_and_leaves_nothing(
    intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = photo_path.read_bytes(), tmp_path / "bad.png"
    for data in (None, b"", whole[:3000], b"hello" * 99, whole):
        if data is not None:
            bad.write_bytes(data)
        # The last one has too many pixels.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 if data == whole else 10**6)
        code, out, err = intsr("upscale", identity_engine, bad, "-o", tmp_path / "new" / "out.png")
        assert (code, out, err.count("\n")) == (EXIT_SOME_FAILED, "", 1)
        assert err.startswith(f"intsr: error: {bad}: ")
        assert not (tmp_path / "new").exists()


def test_existing_outputs_need_a_word(intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    output.write_bytes(b"before")
    code, _, err = intsr("upscale", identity_engine, photo_path, "-o", output)
    assert (code, output.read_bytes()) == (EXIT_USAGE, b"before")
    assert "--skip-existing or --overwrite" in err
    code, out, _ = intsr("upscale", identity_engine, photo_path, "-o", output, "--skip-existing", "--json")
    assert (code, json.loads(out)["status"], output.read_bytes()) == (0, "skipped", b"before")
    assert intsr("upscale", identity_engine, photo_path, "-o", output, "--overwrite")[0] == 0
    assert Image.open(output).size == (142, 106)
    assert intsr("upscale", identity_engine, photo_path, "-o", output, "--overwrite", "--skip-existing")[0] == 2


def test_a_batch_is_resumed(intsr: Run, identity_engine: Path, photo: np.ndarray, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(photo).save(folder / name)
    output.mkdir()
    (output / "a.png").write_bytes(b"done before")
    code, _, err = intsr("upscale", identity_engine, folder, "-o", output, "--skip-existing")
    assert code == 0
    assert "1 ok, 1 skipped" in err
    assert (output / "a.png").read_bytes() == b"done before"
    assert Image.open(output / "b.png").size == (142, 106)


@pytest.mark.parametrize(
    ("option", "code", "status", "kept"),
    [
        ("", EXIT_SOME_FAILED, "failed", True),
        ("--skip-existing", 0, "skipped", True),
        ("--overwrite", 0, "ok", False),
    ],
)
def test_a_file_that_appears_while_one_is_made(
    intsr: Run,
    identity_engine: Path,
    photo_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    code: int,
    status: str,
    kept: bool,
) -> None:
    """Somebody else writes it between the check before the first picture and the end of this one."""
    output, check = tmp_path / "out.png", image_stream.check_written

    def written_by_another(*args) -> None:
        check(*args)
        output.write_bytes(b"another's")

    monkeypatch.setattr(image_stream, "check_written", written_by_another)
    arguments = ["upscale", identity_engine, photo_path, "-o", output, "--json", *filter(None, [option])]
    got, out, _ = intsr(*arguments)
    assert (got, json.loads(out)["status"]) == (code, status)
    assert (output.read_bytes() == b"another's") == kept
    assert [name for name in _files(tmp_path) if name.endswith(".part")] == []


def test_names_and_formats(intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert intsr("upscale", identity_engine, photo_path, "-o", output, "--suffix", "_x2", "--format", "webp")[0] == 0
    assert _files(output) == ["photo_x2.webp"]


def test_alpha_and_orientation_come_through(
    intsr: Run, identity_engine: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    image = Image.fromarray(photo)
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source, exif=exif)
    assert intsr("upscale", identity_engine, source, "-o", output)[0] == 0
    with Image.open(output) as written:
        assert (written.mode, written.size) == ("RGBA", (106, 142))
        assert written.getexif().get(0x0112, 1) == 1
        expected = alpha.transpose(Image.Transpose.ROTATE_270).resize((106, 142), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(written.getchannel("A")), np.asarray(expected))
    code, _, err = intsr("upscale", identity_engine, source, "-o", tmp_path / "out.jpg")
    assert code == EXIT_SOME_FAILED
    assert "transparent" in err
    assert not (tmp_path / "out.jpg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", 16], "--overlap"),
        (["--threads", 0], "--threads"),
        (["--precision", "bf16"], "--precision"),
        (["--color-fix", "sepia"], "sepia"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_options_are_usage_errors(
    intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    code, _, err = intsr("upscale", identity_engine, photo_path, "-o", tmp_path / "new" / "out.png", *options)
    assert (code, message in err, err.count("\n")) == (EXIT_USAGE, True, 1)
    assert not (tmp_path / "new").exists()


def test_an_engine_for_another_target(intsr: Run, make_engine, photo_path: Path, tmp_path: Path) -> None:
    engine = make_engine("onnxruntime", library_version="2099.1")
    code, _, err = intsr("upscale", engine, photo_path, "-o", tmp_path / "new" / "out.png")
    assert (code, err.count("\n")) == (EXIT_ENGINE_MISMATCH, 1)
    assert not (tmp_path / "new").exists()


def test_an_engine_with_a_flipped_byte(intsr: Run, make_engine, photo_path: Path, tmp_path: Path) -> None:
    engine = make_engine("onnxruntime")
    data = bytearray(engine.read_bytes())
    data[-1000] ^= 1
    engine.write_bytes(data)
    code, _, err = intsr("upscale", engine, photo_path, "-o", tmp_path / "new" / "out.png")
    assert (code, err.count("\n")) == (EXIT_USAGE, 1)
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_cannot_be_made(
    intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = intsr("upscale", identity_engine, photo_path, "-o", tmp_path / "file" / "out.png")
    assert (code, err.count("\n")) == (EXIT_USAGE, 1)
    assert "cannot write here" in err


def test_too_little_memory(
    intsr: Run, identity_engine: Path, photo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    code, _, err = intsr("upscale", identity_engine, photo_path, "-o", tmp_path / "out.png")
    assert (code, "pixels out need about" in err) == (EXIT_OUT_OF_MEMORY, True)

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.undo()
    monkeypatch.setattr(upscale_file, "read_image", exhausted)
    code, _, err = intsr("upscale", identity_engine, photo_path, "-o", tmp_path / "out.png")
    assert (code, "out of memory" in err) == (EXIT_OUT_OF_MEMORY, True)


def test_a_black_file_is_never_written(intsr: Run, make_engine, photo_path: Path, tmp_path: Path) -> None:
    for gain, message in ((float("nan"), "NaN"), (0.0, "flat")):
        code, _, err = intsr("upscale", make_engine(decoder_gain=gain), photo_path, "-o", tmp_path / "out.png")
        assert (code, message in err) == (EXIT_SOME_FAILED, True)
        assert not (tmp_path / "out.png").exists()


def test_interrupted_while_writing(
    intsr: Run, identity_engine: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(photo).save(folder / name)
    # They are kept, as another might get the number of one that is gone.
    write, written = image_stream.PictureWriter.write, list[image_stream.PictureWriter]()

    def interrupted(writer: image_stream.PictureWriter, rows: np.ndarray) -> None:
        written.append(writer)
        write(writer, rows)
        if len(set(map(id, written))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(image_stream.PictureWriter, "write", interrupted)
    assert intsr("upscale", identity_engine, folder, "-o", output)[0] == EXIT_INTERRUPTED
    files = _files(output)
    assert "a.png" in files and "b.png" not in files
    for name in files:
        with Image.open(output / name) as image:
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
    intsr: Run, make_engine, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intsr.runtime.backends.openvino.backend import OpenVINONetwork

    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(photo[:16, :16]).save(tmp_path / name)
    run, count = OpenVINONetwork.run, iter(range(100))

    class Broken:
        def start_async(self, *_: object, **__: object) -> None:
            raise RuntimeError("somewhere in C++\nCheck 'false' failed")

        def wait(self) -> None:
            """Nothing runs."""

    def sometimes(network: OpenVINONetwork, x: np.ndarray) -> np.ndarray:
        if next(count) != 4:
            return run(network, x)
        whole, network._request = network._request, Broken()
        try:
            return run(network, x)
        finally:
            network._request = whole

    monkeypatch.setattr(OpenVINONetwork, "run", sometimes)
    code, _, err = intsr("upscale", make_engine("cpu"), tmp_path, "-o", tmp_path / "out", "-q")
    assert code == EXIT_SOME_FAILED
    assert err.count("\n") == 1 and "OpenVINO cannot run it (Check 'false' failed)" in err
    assert _files(tmp_path / "out") == ["a.png", "c.png"]


def test_names_do_nothing_to_the_terminal(intsr: Run, identity_engine: Path, tmp_path: Path) -> None:
    name = tmp_path / "new\nline\x1b[2J.png"
    name.write_bytes(b"")
    _, _, err = intsr("upscale", identity_engine, name, "-o", tmp_path / "out.png")
    assert err.count("\n") == 1 and "new\\nline\\x1b[2J.png: file is empty" in err


def test_help_shows_an_example(intsr: Run) -> None:
    code, out, _ = intsr("upscale", "--help")
    assert code == 0
    assert "Example: intsr upscale" in out


def test_a_cpu_engine_upscales_where_the_compiler_is_not_installed(
    make_engine: Callable[..., Path], photo_path: Path, tmp_path: Path
) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers", "onnx", "onnxruntime", "safetensors")))
from intsr.cli.main import main
main()
"""
    output = tmp_path / "out.png"
    arguments = ["upscale", make_engine("cpu"), photo_path, "-o", output]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert output.is_file()
