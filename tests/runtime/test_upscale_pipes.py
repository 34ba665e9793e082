"""`-`: a picture from stdin, a picture to stdout, and nothing else there; never a file or folder of that name."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from intsr.errors import EXIT_SOME_FAILED, EXIT_USAGE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, and where temporary files go: nothing may be left."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def _left(folder: Path) -> list[str]:
    """Without what libraries leave in TMPDIR for themselves."""
    return [path.name for path in folder.iterdir() if path.name not in (".ses", "torchinductor_root")]


def _piped(engine: Path, data: bytes, *options: str) -> tuple[int, bytes, str]:
    command = [sys.executable, "-m", "intsr", "upscale", str(engine), "-", "-o", "-", *options]
    run = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
    return run.returncode, run.stdout, run.stderr.decode()


def test_from_pipe_to_pipe(upscale: Run, identity_engine: Path, photo_path: Path, elsewhere: Path) -> None:
    for suffix, options in (("png", ()), ("jpg", ("--format", "jpg", "--quality", "80"))):
        code, out, err = _piped(identity_engine, photo_path.read_bytes(), *options)
        assert (code, err.startswith("stdin -> stdout (142x106, ")) == (0, True), err
        named = elsewhere / f"out.{suffix}"
        upscale(photo_path, "-o", named, *options[2:])
        assert named.read_bytes() == out
        named.unlink()
    assert _left(elsewhere) == []


def test_a_broken_picture_from_a_pipe(identity_engine: Path, elsewhere: Path) -> None:
    for data, words in ((b"", "stdin: file is empty"), (b"<html>", "stdin: not a picture, whatever its name says")):
        code, out, err = _piped(identity_engine, data)
        assert (code, out, err.count("\n")) == (EXIT_SOME_FAILED, b"", 1)
        assert err.startswith(f"intsr: error: {words}")
    assert _left(elsewhere) == []


class _Bytes(io.TextIOWrapper):
    """A stream of text over bytes in memory."""

    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def test_one_end_may_be_a_file(
    upscale: Run, identity_engine: Path, photo_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Bytes(photo_path.read_bytes()))
    code, out, _ = upscale("-", "-o", "out.webp", "--json")
    assert code == 0 and '"input": "stdin", "output": "out.webp", "status": "ok"' in out
    stdout = _Bytes()
    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", stdout)
        changed.setattr(sys, "argv", ["intsr", "upscale", str(identity_engine), str(photo_path), "-o", "-", "-q"])
        with pytest.raises(SystemExit) as ended:
            from intsr.cli.main import main

            main()
    assert ended.value.code == 0
    assert Image.open(io.BytesIO(stdout.buffer.getvalue())).size == (142, 106)  # type: ignore[attr-defined]
    assert _left(elsewhere) == ["out.webp"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-", "a.png", "-o", "-"), "-: together with several pictures"),
        (("a.png", "b.png", "-o", "-"), "-o -: together with several pictures"),
        ((".", "-o", "-"), "-o -: together with several pictures"),
        (("*.png", "-o", "-"), "-o -: together with several pictures"),
        (("-", "-o", "out"), "-o: out, while the picture from stdin has no name; expected a file with .png"),
        (("-", "-o", "."), "-o: ., while the picture from stdin has no name; expected a file with .png"),
        (("-", "-o", "-", "--json"), "--json: together with -o -; expected one of them"),
        (("-", "-o", "-", "--overwrite"), "--overwrite: together with -o -; expected one of them"),
        (("-", "-o", "-", "--skip-existing"), "--skip-existing: together with -o -; expected one of them"),
        (("-", "-o", "-", "--suffix", "_x4"), "--suffix: has no effect"),
        (("-", "-o", "-", "--quality", "80"), "--quality: has no effect: no output is JPEG"),
    ],
)
def test_what_does_not_go_through_a_pipe(
    upscale: Run, photo_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, arguments, words
) -> None:
    monkeypatch.setattr(sys, "stdin", _Bytes(photo_path.read_bytes()))
    code, out, err = upscale(*arguments)
    assert (code, out, err.count("\n")) == (EXIT_USAGE, "", 1)
    assert err.startswith(f"intsr: error: {words}")
    assert _left(elsewhere) == []


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_terminal_is_no_pipe(
    upscale: Run, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, stream: str, closed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", _Bytes(terminal=stream == "stdin"))
    monkeypatch.setattr(sys, stream, None if closed else _Bytes(terminal=True))
    code, _, err = upscale("-", "-o", "-")
    assert (code, f"{stream} is a terminal" in err, _left(elsewhere)) == (EXIT_USAGE, True, [])


def test_a_file_that_is_really_called_so(upscale: Run, photo_path: Path, elsewhere: Path) -> None:
    Path("-").write_bytes(photo_path.read_bytes())
    assert upscale("./-", "-o", "out.png")[0] == 0
    assert Path("out.png").is_file()


# What imports torch takes long.
_OTHERS = [
    ("extract", "ENGINE", "-o", "-"),
    ("bench", "ENGINE", "--alone", "--csv", "-"),
    *(
        pytest.param(arguments, marks=pytest.mark.slow)
        for arguments in (
            ("synth", "--arch", "sd21", "-o", "-"),
            ("bench", "ENGINE", "--alone", "--markdown", "-"),
            ("export", "demo", "-o", "-"),
            ("compile", "demo", "--bits", "fp", "-o", "-"),
            ("calibrate", "demo", "--images", "PHOTOS", "-o", "-"),
            ("demo", "-o", "-"),
        )
    ),
]


@pytest.mark.parametrize("arguments", _OTHERS)
def test_no_other_command_writes_a_file_or_folder_of_that_name(
    intsr: Run, identity_engine: Path, photo_path: Path, elsewhere: Path, arguments: tuple[str, ...]
) -> None:
    named = [{"ENGINE": identity_engine, "PHOTOS": photo_path.parent}.get(item, item) for item in arguments]
    code, out, err = intsr(*named)
    assert (code, out, err.count("\n")) == (EXIT_USAGE, "", 1), err
    assert "-: is no name for a file or folder" in err
    assert _left(elsewhere) == []
