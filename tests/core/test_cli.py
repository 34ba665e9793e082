"""The command as the shell sees it: instant help, one-line errors, exit codes."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr import errors
from intsr.cli import main as cli
from intsr.cli.main import COMMANDS
from intsr.cli.reference import markdown

TEXT = st.text(max_size=20)
HEAVY = ("torch", "numpy", "PIL", "openvino", "onnx", "onnxruntime", "diffusers", "rich", "skimage")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import json, sys
from intsr.cli.main import main
sys.argv = ["intsr", *{arguments!r}]
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, imported = json.loads(run.stdout.splitlines()[-1])
    assert imported == []
    assert exit_code == (0 if arguments else 2)
    if arguments != ["--version"]:
        shown = run.stdout + run.stderr
        assert all(f"  {name} " in shown for name in COMMANDS)
        assert "intsr: error" not in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there_with_help_and_an_example(name, intsr):
    code, shown, _ = intsr(name, "--help")
    assert code == 0
    assert f"intsr {name}" in shown.split("Options:")[1], "no example"
    assert {"--json", "-q", "-v"} <= set(shown.replace(",", " ").split())


def test_the_reference_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m intsr.cli.reference > docs/cli.md"


@pytest.fixture
def run_command(monkeypatch, intsr):
    """run_command(function) -> (exit code, stdout, stderr) of `intsr probe` with that body."""

    def run(body):
        command = click.command("probe")(body)
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)
        return intsr("probe")

    return run


def _raiser(error):
    def body():
        raise error

    return body


CODES = {"BuildError": 1, "VerificationError": 1, "EngineMismatchError": 3, "OutOfMemoryError": 4} | dict.fromkeys(
    ("UsageError", "ImageError", "ModelError", "CalibrationError", "ExportError", "BundleError"), 2
)


def test_every_error_is_one_line_with_its_code(run_command):
    for name, expected in CODES.items():
        error = getattr(errors, name)("a.png", "got\nthis", "that", "do so")
        code, stdout, stderr = run_command(_raiser(error))
        assert (code, stdout) == (expected, ""), name
        assert stderr == "intsr: error: a.png: got this; expected that; do so\n"


@given(got=TEXT, expected=TEXT, fix=TEXT)
def test_errors_are_always_one_line(got, expected, fix):
    assert len(str(errors.IntsrError("where", got, expected, fix)).splitlines()) == 1


def test_errors_say_what_was_given():
    assert str(errors.IntsrError("a.png", got="8 pixels")) == "a.png: 8 pixels"
    assert str(errors.IntsrError("a.png", fix="crop it")) == "a.png: crop it"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (
            errors.MissingLibraryError("torch", "compile", "this"),
            2,
            'intsr: error: this: torch is not installed; install it with: pip install "intsr[compile]"',
        ),
        (MemoryError(), 4, "intsr: error: out of memory"),
        (OSError(errno.ENOSPC, "full", "a.engine"), 1, "intsr: error: a.engine: no space left on the device"),
        (ModuleNotFoundError("no", name="torch.nn"), 2, "intsr: error: this command: torch is not installed"),
        (KeyboardInterrupt(), 130, "intsr: interrupted"),
        (click.Abort(), 130, "intsr: interrupted"),
        (click.UsageError("several\nlines."), 2, "intsr: error: several lines"),
    ],
)
def test_other_ends(run_command, error, exit_code, message):
    code, stdout, stderr = run_command(_raiser(error))
    assert (code, stdout) == (exit_code, "")
    assert stderr.strip().startswith(message)
    assert len(stderr.strip().splitlines()) == 1


def test_a_command_ends_with_the_code_it_asks_for(run_command):
    assert run_command(lambda: click.get_current_context().exit(3))[0] == 3
    assert run_command(lambda: "text")[0] == 0


@pytest.mark.parametrize("error", [ValueError("bug"), EOFError("bug")])
def test_bugs_keep_their_traceback(run_command, error):
    with pytest.raises(type(error), match="bug"):
        run_command(_raiser(error))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'; see intsr --help"),
        (["upsclae"], "No such command 'upsclae'. Did you mean 'upscale'?; see intsr --help"),
        (["--nothing"], "No such option '--nothing'; see intsr --help"),
        (["info", "--frames", "many"], "'many' is not a valid integer; see intsr info --help"),
        (["evaluate"], "Missing argument 'SR'; see intsr evaluate --help"),
    ],
)
def test_mistyped_command_lines_are_one_line(intsr, arguments, message):
    code, stdout, stderr = intsr(*arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("intsr: error: ") and stderr.endswith(f"{message}\n") and stderr.count("\n") == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_is_no_finite_number_is_refused(name):
    """By every option that takes a number: as a limit it would mean for ever, or nothing."""
    with click.Context(cli.cli) as context:
        command = cli.cli.get_command(context, name)
    for option in command.params:
        if isinstance(option.type, click.types.FloatParamType):
            for text in ("nan", "inf", "-inf"):
                with pytest.raises(click.BadParameter):
                    option.type.convert(text, option, None)
