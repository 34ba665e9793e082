"""Reading ONNX files that somebody else may have written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.errors import ExportError
from intsr.optional import require

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file; external weights are checked, not loaded.

    Raises ExportError for anything that is not an ONNX model, or whose external data is missing or lies outside its
    folder.
    """
    library = require("onnx", "reading ONNX files")
    try:
        model: onnx.ModelProto = library.load(str(path), load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no nodes")
    # protobuf's own exception classes differ between its implementations.
    except Exception as error:
        raise ExportError(path, f"not an ONNX model ({error})", "a file that intsr export wrote") from error
    for tensor in _external_tensors(model.graph):
        _check_external(path, tensor)
    return model


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Files beside `path` that hold weights of a model that `read_onnx` gave, in order."""
    return [path.parent / name for name in sorted({_location(t) for t in _external_tensors(model.graph)})]


def _location(tensor: onnx.TensorProto) -> str:
    return str({entry.key: entry.value for entry in tensor.external_data}.get("location", ""))


def _external_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in _tensors(graph) if tensor.data_location == tensor.EXTERNAL)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    location = _location(tensor)
    file = path.parent / location
    inside = bool(location) and file.resolve().is_relative_to(path.parent.resolve())
    if not inside or Path(location).is_absolute() or file.is_symlink():
        got = f"external data {location!r} of {tensor.name!r} is outside the model's folder"
        raise ExportError(path, got, "a plain file beside the model", "export the model again")
    if not file.is_file():
        raise ExportError(path, f"external data {location!r} is missing", fix="keep it beside the model")
