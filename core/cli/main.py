"""The `intsr` command: a group that imports a command's module only when that command is asked for."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import sys
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from intsr.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_OUT_OF_MEMORY,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    IntsrError,
    MissingLibraryError,
)
from intsr.optional import EXTRAS

# The signal that has asked for the end.
_ended_by: int | None = None
# So often Ctrl-C ends the program at once, whatever is left behind.
_INSISTING = 5

# name -> (module that defines a click command of the same name, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "calibrate": ("intsr.calib.commands.calibrate", "Learn activation ranges from a folder of pictures."),
    "export": ("intsr.export.commands.export", "Write the three networks as QDQ ONNX."),
    "compile": ("intsr.engines.commands.compile", "Build an .engine file, walking the whole way if need be."),
    "inspect": (
        "intsr.engines.commands.inspect",
        "Show what is in an .engine file, down to its kernels, or in a calibration.",
    ),
    "verify": ("intsr.engines.commands.verify", "Compare an engine with the torch reference, in decibels."),
    "upscale": ("intsr.runtime.commands.upscale", "Upscale pictures with an engine."),
    "bench": ("intsr.runtime.commands.bench", "Measure latency and memory of engines, interleaved."),
    "evaluate": ("intsr.runtime.commands.evaluate", "PSNR and SSIM of a folder of pictures against originals."),
    "info": ("intsr.calib.commands.info", "Parameters and operations of a model, by network."),
    "compare": ("intsr.engines.commands.compare", "One table of methods and bits, each through its engine."),
    "report": (
        "intsr.engines.commands.report",
        "One HTML file: pictures side by side, errors, layers, curves, times.",
    ),
    "convert": ("intsr.calib.commands.convert", "Rewrite a pickle of weights as safetensors."),
    "synth": ("intsr.calib.commands.synth", "Write a full-size model of random weights, to measure with."),
    "extract": ("intsr.engines.commands.extract", "Write the raw plans of an .engine file."),
    "demo": ("intsr.engines.commands.demo", "Run everything on the bundled model and real pictures."),
}


class LazyGroup(click.Group):
    """Lists commands from a table; imports one when it is invoked or its own --help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        # `compile` is a builtin: a command function may carry the suffix _command.
        command = getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click looks for similar names among commands that it has, and these are not imported yet.
        similar = get_close_matches(args[0], COMMANDS, 1) if args and args[0] not in COMMANDS else []
        if similar and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {similar[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `intsr demo`. Every command has --help with an example.",
)
@click.version_option(package_name="intsr")
def cli() -> None:
    """Compile one-step-diffusion super-resolution models into integer engines, and run them."""


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path} --help" if context else message


def _terminate(number: int, _: FrameType | None) -> None:
    # An exception, so that temporary files are removed on the way out; 128 + the signal, as shells report it.
    global _ended_by
    _ended_by = number
    sys.exit(128 + number)


def _handle_signals() -> None:
    global _ended_by
    _ended_by = None
    signal.signal(signal.SIGTERM, _terminate)
    # The terminal was closed; under nohup that is ignored, and stays so.
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        signal.signal(hangup, _terminate)


def _invoke() -> int:
    """The code to end with."""
    try:
        # Outside its standalone mode, click hands back the code of ctx.exit() instead of ending the process.
        code = cli.main(prog_name="intsr", standalone_mode=False)
    except BaseException:
        # Whatever became of a signal's exception on its way: where a C library was being imported, an ImportError.
        if _ended_by == signal.SIGINT:
            raise KeyboardInterrupt from None
        if _ended_by is not None:
            raise SystemExit(128 + _ended_by) from None
        raise
    return code if isinstance(code, int) else EXIT_OK


def main() -> None:
    """Entry point: user errors are one line, bugs keep their traceback."""
    _handle_signals()
    try:
        sys.exit(_invoke())
    except IntsrError as error:
        click.echo(f"intsr: error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        click.echo(f"intsr: error: {_one_line(error)}", err=True)
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):
            # click takes a broken file's end for Ctrl-D at a prompt; there are no prompts here.
            raise error.__cause__ from None
        click.echo("intsr: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        # A stage whose optional libraries are missing is a matter of installation; a module of our own is a bug.
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        missing = MissingLibraryError(library, EXTRAS[library], "this command")
        click.echo(f"intsr: error: {missing}", err=True)
        sys.exit(missing.exit_code)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            _end_without_memory()
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"intsr: error: {error.filename or 'output'}: no space left on the device; free some", err=True)
        sys.exit(EXIT_SOME_FAILED)
    except MemoryError:
        _end_without_memory()


def _end_without_memory() -> NoReturn:
    click.echo("intsr: error: out of memory; use a smaller --tile", err=True)
    sys.exit(EXIT_OUT_OF_MEMORY)


def run_command() -> None:
    """`main` as a process of its own. `intsr.cli.entry` calls it."""
    # Where a shell started this in its background, Ctrl-C is not meant for it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except SystemExit as error:
        if error.code == EXIT_INTERRUPTED:
            # Where Ctrl-C came while a C library was running Python code, the interpreter would remember it and end
            # by that signal in spite of the code. Nothing is left to clean up: every context has been closed.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(EXIT_INTERRUPTED)
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C; those that follow must not disturb the cleaning up, until somebody really insists."""
    pressed = itertools.count(1)

    def interrupt_again(number: int, frame: FrameType | None) -> None:
        if next(pressed) >= _INSISTING:
            os._exit(EXIT_INTERRUPTED)

    global _ended_by
    _ended_by = number
    signal.signal(signal.SIGINT, interrupt_again)
    raise KeyboardInterrupt
