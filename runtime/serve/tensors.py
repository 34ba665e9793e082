"""Triton's tensors to arrays and back, by DLPack.

The Python backend's own `as_numpy` and `Tensor(name, array)` expect NumPy 1's memory layout in many of its releases:
with NumPy 2 they read one byte again and again, and send nothing, without an error.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from intsr.arrays import Array

# What consumers call a capsule that they have taken: NumPy looks for this name, and the backend has another one. The
# capsule points to it.
_TAKEN = b"used_dltensor"
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = (ctypes.py_object, ctypes.c_char_p)


def array_from_tensor(tensor: Any) -> Array:
    """Return an input in this machine's memory as an array, without a copy: it lasts as long as the request does."""
    return np.from_dlpack(tensor)


def tensor_from_array(pb_utils: Any, name: str, array: Array) -> Any:
    """Return a contiguous array as an output of that name, without a copy."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _rename(capsule, _TAKEN)
    return tensor
