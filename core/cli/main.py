"""The `intsr` command: a group that imports a command's module only when that command is asked for."""

from __future__ import annotations

import errno
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from intsr.cli.signals import exit_code_of_signal
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

# name -> (module that defines a click command of the same name, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "calibrate": ("intsr.calib.commands.calibrate", "Learn activation ranges from a folder of pictures."),
    "retrain": ("intsr.calib.commands.retrain", "Move a model to another timestep, for engines of few bits."),
    "export": ("intsr.export.commands.export", "Write the three networks as QDQ ONNX."),
    "compile": ("intsr.engines.commands.compile", "Build an .engine file, walking the whole way if need be."),
    "inspect": (
        "intsr.engines.commands.inspect",
        "Show what is in an .engine file, down to its kernels, or in a calibration.",
    ),
    "verify": ("intsr.engines.commands.verify", "Compare an engine with the torch reference, in decibels."),
    "upscale": ("intsr.runtime.commands.upscale", "Upscale pictures and films with an engine."),
    "app": ("intsr.runtime.commands.app", "A window in the browser: drop pictures, compare, download."),
    "serve-repository": (
        "intsr.runtime.commands.serve_repository",
        "Write a model repository for Triton Inference Server.",
    ),
    "bench": ("intsr.runtime.commands.bench", "Measure latency and memory of engines, interleaved."),
    "evaluate": ("intsr.runtime.commands.evaluate", "PSNR and SSIM of pictures, or of a film, against originals."),
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
        function = cmd_name.replace("-", "_")
        command = getattr(module, f"{function}_command", None) or getattr(module, function)
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


def main() -> None:
    """Run the command that `sys.argv` asks for: user errors are one line, bugs keep their traceback."""
    try:
        # Outside its standalone mode, click hands back the code of ctx.exit() instead of ending the process.
        result = cli.main(prog_name="intsr", standalone_mode=False)
        code = result if isinstance(result, int) else EXIT_OK
    except BaseException as error:
        code = exit_code_of_signal() or _exit_code(error)
        if code == EXIT_INTERRUPTED:
            click.echo("intsr: interrupted", err=True)
    sys.exit(code)


def _exit_code(error: BaseException) -> int:
    """Say what ended the command, in one line, and return its exit code; raise what is none of a user's business."""
    if isinstance(error, click.Abort | KeyboardInterrupt) and not isinstance(error.__cause__, EOFError):
        return EXIT_INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        return _tell(_one_line(error), EXIT_USAGE)
    if isinstance(error, ModuleNotFoundError):
        # A stage whose optional libraries are missing is a matter of installation; a module of our own is a bug.
        library = (error.name or "").partition(".")[0]
        if library in EXTRAS:
            error = MissingLibraryError(library, EXTRAS[library], "this command")
    if isinstance(error, IntsrError):
        return _tell(str(error), error.exit_code)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return _tell("out of memory; use a smaller --tile", EXIT_OUT_OF_MEMORY)
    if isinstance(error, OSError) and number == errno.ENOSPC:
        where = error.filename or "output"
        return _tell(f"{where}: no space left on the device; free some", EXIT_SOME_FAILED)
    # click takes a broken file's end for Ctrl-D at a prompt; there are no prompts here.
    raise error.__cause__ if isinstance(error, click.Abort) and error.__cause__ else error


def _tell(message: str, code: int) -> int:
    click.echo(f"intsr: error: {message}", err=True)
    return code
