"""Errors a user can do something about: one line that says where, what was got, what was expected, and the fix."""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_ENGINE_MISMATCH = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_INTERRUPTED = 130


class IntsrError(Exception):
    """Base of every error that the command line shows as one line instead of a traceback.

    `where` is the file, option or object that is at fault, `got` and `expected` what is there and what should be, and
    `fix` what the user can do, as an instruction. Every part but `where` may be empty.
    """

    exit_code = EXIT_USAGE

    def __init__(self, where: object, got: str = "", expected: str = "", fix: str = "") -> None:
        self.where, self.got, self.expected, self.fix = str(where), got, expected, fix
        parts = [got, f"expected {expected}" if expected else "", fix]
        super().__init__(printable(f"{self.where}: " + "; ".join(" ".join(part.split()) for part in parts if part)))


def printable(text: str) -> str:
    """Escape all that is no letter, as file names may hold it: the text is then one line, harmless to a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class UsageError(IntsrError):
    """A command line or argument that cannot be carried out."""


class OutputExistsError(UsageError):
    """A file that was not there when the work began, and that nobody has said may be replaced."""


class ImageError(IntsrError):
    """A picture that cannot be read or written."""


class ModelError(IntsrError):
    """A model folder or checkpoint that cannot be loaded."""


class CalibrationError(IntsrError):
    """A calibration that is broken or belongs to something else."""


class ExportError(IntsrError):
    """A model that cannot be written as ONNX."""


class BuildError(IntsrError):
    """An engine that could not be built."""

    exit_code = 1


class BundleError(IntsrError):
    """A file that is not a whole, unaltered `.engine` bundle."""


class EngineMismatchError(IntsrError):
    """A whole bundle that this machine, library or command cannot run."""

    exit_code = EXIT_ENGINE_MISMATCH


class VerificationError(IntsrError):
    """Numbers that should agree and do not."""

    exit_code = EXIT_SOME_FAILED


class OutOfMemoryError(IntsrError):
    """More memory needed than there is."""

    exit_code = EXIT_OUT_OF_MEMORY


class MissingLibraryError(IntsrError):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, what: str) -> None:
        super().__init__(what, f"{library} is not installed", fix=f'install it with: pip install "intsr[{extra}]"')
