"""What Triton's Python backend runs: a repository has it as `model.py`. It finds intsr, which does the work."""

from __future__ import annotations

import site
import sys
from pathlib import Path
from typing import Any

# Beside this file: the folders of packages that the server's Python is to look into, a line each.
FOLDERS_NAME = "site_packages.txt"


def _search_first(list_path: Path) -> None:
    """Have Python look into these folders first, and into what their .pth files name."""
    before = list(sys.path)
    folders = list_path.read_text(encoding="utf-8").splitlines() if list_path.exists() else []
    for folder in folders:
        site.addsitedir(folder)
    sys.path[:] = [path for path in sys.path if path not in before] + before


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils

        from intsr.runtime.serve.model import ServedModel

        self._model = ServedModel(args, triton_python_backend_utils)

    def execute(self, requests: list[Any]) -> None:
        self._model.execute(requests)

    def finalize(self) -> None:
        self._model.close()


if Path(__file__).name == "model.py":
    # Now, not in `initialize`: before that the backend imports NumPy.
    _search_first(Path(__file__).with_name(FOLDERS_NAME))
    try:
        import intsr.runtime.serve  # noqa: F401
    except ImportError as error:
        here = f"this is Python {sys.version.split()[0]}; see {FOLDERS_NAME} beside model.py"
        raise ImportError(f"intsr cannot be imported: {error}; {here}") from error
