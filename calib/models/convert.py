"""Pickles to safetensors: the same tensors under the same names, and nothing in the file that could ever be run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from intsr.calib.models.families.published import family_of
from intsr.calib.models.families.sd21_ldm import UNET_PREFIX, without_wrapper
from intsr.calib.models.tensor_files import (
    SAFETENSORS_SUFFIX,
    VALUES_KEY,
    as_model_error,
    read_checkpoint,
    write_safetensors,
)
from intsr.errors import UsageError
from intsr.files import atomic_path, check_free_space, check_output_file

LDM = "ldm checkpoint"
TENSORS = "tensors"
# Room for names and shapes beside the tensors.
HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Conversion:
    """The file that was written. kind: what it was taken for. values: how many are kept as metadata."""

    output: Path
    kind: str
    tensors: int
    values: int
    size_bytes: int


def convert(source: Path, output: Path) -> Conversion:
    """Write `output` in one piece. Tensors are mapped from `source` where its format allows, so memory stays small.

    Nested names are joined by dots; an ldm file's outer `state_dict` is dropped, as single-file safetensors have it.
    What is no tensor becomes JSON in the metadata. Raises ModelError, UsageError.
    """
    if output.suffix != SAFETENSORS_SUFFIX:
        raise UsageError(output, f"suffix {output.suffix or 'none'}", f"a name with {SAFETENSORS_SUFFIX}")
    check_output_file(output)
    if output.exists() and output.samefile(source):
        raise UsageError(output, "is the input", "another name")
    checkpoint = read_checkpoint(source)
    unwrapped, kind = without_wrapper(checkpoint.tensors), TENSORS
    family = family_of(checkpoint)
    if family is not None:
        kind = f"{family.title} LoRA"
    elif f"{UNET_PREFIX}input_blocks.0.0.weight" in unwrapped:
        kind = LDM
    tensors = _apart(unwrapped if kind == LDM else checkpoint.tensors)
    check_free_space(output.parent, sum(t.numel() * t.element_size() for t in tensors.values()) + HEADER_BYTES)
    metadata = {"format": "pt", VALUES_KEY: json.dumps(dict(checkpoint.values))}
    metadata |= {"note": checkpoint.note} if checkpoint.note else {}
    with as_model_error(source), atomic_path(output) as temporary:
        write_safetensors(temporary, tensors, metadata)
    return Conversion(output, kind, len(tensors), len(checkpoint.values), output.stat().st_size)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, and no two in one place: safetensors refuses those. What is fine already is not copied."""
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and (not tensor.numel() or storage.data_ptr() not in taken)
        result[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
    return result
