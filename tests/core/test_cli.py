"""The command as the shell sees it: instant help, one-line errors, exit codes."""

import errno
import json
import subprocess
import sys

import click
import pytest

from intsr import errors
from intsr.cli import main as cli
from intsr.cli.main import COMMANDS, main

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
def test_every_command_is_there_with_help_and_an_example(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["intsr", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"intsr {name}" in shown.split("Options:")[1], "no example"
    assert {"--json", "-q", "-v"} <= set(shown.replace(",", " ").split())


@pytest.fixture
def run_command(monkeypatch, capsys):
    """run_command(function) -> (exit code, stdout, stderr) of `intsr probe` with that body."""

    def run(body, *arguments):
        command = click.command("probe")(body)
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)
        monkeypatch.setattr(sys, "argv", ["intsr", "probe", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    return run


def _raiser(error):
    def body():
        raise error

    return body


ERRORS = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.IntsrError)
]


def test_every_error_is_one_line_with_its_code(run_command):
    for cls in set(ERRORS) - {errors.MissingLibraryError}:
        code, stdout, stderr = run_command(_raiser(cls("a.png", "got\nthis", "that", "do so")))
        assert (code, stdout) == (cls.exit_code, "")
        assert stderr == "intsr: error: a.png: got this; expected that; do so\n"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (errors.MissingLibraryError("torch", "compile", "this"), 2, "intsr: error: this: torch is not installed"),
        (MemoryError(), 4, "intsr: error: out of memory"),
        (OSError(errno.ENOSPC, "full", "a.engine"), 1, "intsr: error: a.engine: no space left on the device"),
        (ModuleNotFoundError("no", name="torch.nn"), 2, "intsr: error: this command: torch is not installed"),
        (KeyboardInterrupt(), 130, "intsr: interrupted"),
        (click.Abort(), 130, "intsr: interrupted"),
        (click.UsageError("several\nlines."), 2, "intsr: error: several lines"),
        (click.BadParameter("no"), 2, "intsr: error: Invalid value: no"),
    ],
)
def test_other_ends(run_command, error, exit_code, message):
    code, stdout, stderr = run_command(_raiser(error))
    assert (code, stdout) == (exit_code, "")
    assert stderr.strip().startswith(message)
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_command_ends_with_the_code_it_asks_for(run_command, exit_code):
    assert run_command(lambda: click.get_current_context().exit(exit_code))[0] == exit_code
    assert run_command(_raiser(click.exceptions.Exit(exit_code)))[0] == exit_code


def test_success_is_zero_whatever_a_command_returns(run_command):
    assert run_command(lambda: None)[0] == 0
    assert run_command(lambda: "text")[0] == 0


@pytest.mark.parametrize("error", [ValueError("bug"), EOFError("bug")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    command = click.command("probe")(_raiser(error))
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)
    monkeypatch.setattr(sys, "argv", ["intsr", "probe"])
    with pytest.raises(type(error), match="bug"):
        main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'; see intsr --help"),
        (["upsclae"], "No such command 'upsclae'. Did you mean 'upscale'?; see intsr --help"),
        (["--nothing"], "No such option '--nothing'; see intsr --help"),
        (["info", "--size", "many"], "'many' is not a valid integer range; see intsr info --help"),
        (["evaluate"], "Missing argument 'SR_DIR'; see intsr evaluate --help"),
    ],
)
def test_mistyped_command_lines_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["intsr", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    stdout, stderr = capsys.readouterr()
    assert (end.value.code, stdout) == (2, "")
    assert stderr.startswith("intsr: error: ")
    assert stderr.endswith(f"{message}\n")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_is_no_finite_number_is_refused(name: str) -> None:
    """By every option that takes a number: as a limit it would mean for ever, or nothing."""
    with click.Context(cli.cli) as context:
        command = cli.cli.get_command(context, name)
    assert command is not None
    for option in command.params:
        if isinstance(option.type, click.types.FloatParamType):
            for text in ("nan", "inf", "-inf"):
                with pytest.raises(click.BadParameter):
                    option.type.convert(text, option, None)
