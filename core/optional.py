"""Optional libraries: imported where they are needed, and named with the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from intsr.errors import MissingLibraryError

# library's import name -> the extra of this package that installs it
EXTRAS = {
    **dict.fromkeys(
        ("torch", "diffusers", "onnx", "onnxruntime", "safetensors", "transformers", "skimage"), "compile"
    ),
    "polygraphy": "rtx",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "pycuda": "pycuda",
    "matplotlib": "plot",
    "jinja2": "report",
    "tensorrt_rtx": "rtx",
    "pyiqa": "metrics",
    "av": "video",
    "gradio": "app",
    **dict.fromkeys(("ray", "pyarrow", "pandas", "fsspec"), "ray"),
}


def require(library: str, what: str) -> ModuleType:
    """Import `library`. Raises MissingLibraryError naming the extra; `what` says what it is needed for."""
    package = library.partition(".")[0]
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        # What an installed library lacks itself is another matter.
        if error.name != package:
            raise
        raise MissingLibraryError(package, EXTRAS.get(package, "compile"), what) from error
    return import_module(library)
