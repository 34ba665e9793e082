"""Collects ONNX nodes and initializers under unique names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from intsr.errors import ExportError
from intsr.targets.lowering import Lowering
from intsr.types import TensorInfo

IR_VERSION = 10
# Smaller constants stay in the model. What lies outside can be mapped by pages of this alignment.
EXTERNAL_BYTES, ALIGNMENT_BYTES = 1024, 4096


class ExternalData:
    """A file beside the model that constants are written to as they are added. Use it as a context manager, once for
    each model that keeps its constants there: what an earlier one has written is not written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}

    def __enter__(self) -> ExternalData:
        self._file = self.path.open("r+b" if self._offsets else "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        """Write the array; returns the tensor that points at it."""
        digest = hashlib.sha256(array.data).digest()
        offset = self._offsets.get(digest)
        if offset is None:
            offset = self._offsets[digest] = -(-self._file.seek(0, os.SEEK_END) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            self._file.seek(offset)
            array.tofile(self._file)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class GraphBuilder:
    """Append-only. Float constants are cast to the lowering's dtype as they are added.

    data: takes the large ones, where there is one.
    """

    def __init__(self, lowering: Lowering, data: ExternalData | None = None) -> None:
        self.lowering, self._data = lowering, data
        self.float_dtype = np.dtype(lowering.float_dtype)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._names: set[str] = set()
        # Codes (kept, so that their memory is not another's) and the value that was made of them.
        self.weights_of_site: dict[str, list[tuple[NDArray[np.int8], str]]] = {}

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def constant(self, name: str, value: NDArray[Any] | np.floating[Any] | float | list[int]) -> str:
        """Add an initializer and return its name. Floats take the lowering's dtype, lists become int64.

        Raises ExportError where that dtype cannot hold a value.
        """
        array = np.asarray(value, np.int64) if isinstance(value, list) else np.asarray(value)
        if np.issubdtype(array.dtype, np.floating):
            array = _cast(name, array, self.float_dtype)
        return self._initializer(name, array)

    def half(self, name: str, value: NDArray[np.floating[Any]]) -> str:
        """Add an initializer of float16 and return its value in the lowering's dtype. Raises ExportError, too."""
        stored = self._initializer(name, _cast(name, value, np.dtype(np.float16)))
        if self.float_dtype == np.float16:
            return stored
        return self.op("Cast", [stored], f"{name}.cast", to=helper.np_dtype_to_tensor_dtype(self.float_dtype))

    def _initializer(self, name: str, array: NDArray[Any]) -> str:
        unique = self._unique(name)
        whole = np.ascontiguousarray(array).reshape(array.shape)
        if self._data is not None and whole.nbytes >= EXTERNAL_BYTES:
            self._initializers[unique] = self._data.add(unique, whole)
        else:
            self._initializers[unique] = numpy_helper.from_array(whole, unique)
        return unique

    def nibbles(self, name: str, values: NDArray[np.uint8]) -> str:
        """Add an initializer of type uint4 and return its name. values: below 16."""
        flat = np.zeros(-(-values.size // 2) * 2, np.uint8)
        flat[: values.size] = values.ravel()
        unique = self._initializer(name, flat[::2] | flat[1::2] << 4)
        tensor = self._initializers[unique]
        tensor.data_type, tensor.dims[:] = onnx.TensorProto.UINT4, values.shape
        return unique

    def node(self, op_type: str, inputs: list[str], name: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Append a node; returns its outputs' names."""
        unique = self._unique(name)
        names = [unique if outputs == 1 else f"{unique}:{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op_type, inputs, names, name=unique, **attributes))
        return names

    def op(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node of one output and return that output's name."""
        return self.node(op_type, inputs, name, **attributes)[0]

    def model(
        self, graph_name: str, values_in: Sequence[TensorInfo], values_out: Sequence[tuple[str, TensorInfo]]
    ) -> onnx.ModelProto:
        """The finished model. values_out: each with the value that becomes it."""
        for source, value in values_out:
            self._nodes.append(helper.make_node("Identity", [source], [value.name], name=value.name))
        ins, outs = (
            [
                helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), v.shape)
                for v in values
            ]
            for values in (values_in, [value for _, value in values_out])
        )
        graph = helper.make_graph(self._nodes, graph_name, ins, outs, initializer=list(self._initializers.values()))
        opset = helper.make_opsetid("", self.lowering.opset)
        return helper.make_model(graph, producer_name="intsr", opset_imports=[opset], ir_version=IR_VERSION)


def _cast(name: str, value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below, by name
        array = value.astype(dtype)
    if not np.isfinite(array).all():
        raise ExportError(
            name, f"a constant of {np.abs(value).max():g}", f"what {dtype} can hold", "use --target cpu"
        )
    return array
