"""Find the file of a part's folder that holds its weights, or the index of several, and say what others are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from intsr.calib.models.spec import read_json
from intsr.calib.models.tensor_files import CHECKPOINT_SUFFIXES, SAFETENSORS_SUFFIX, check_is_data, read_checkpoint
from intsr.errors import ModelError

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# As diffusers calls the lists of what it has divided.
INDEX_FILES = tuple(f"{WEIGHT_FILES[0]}.index{variant}.json" for variant in ("", ".fp16"))
_SHARD = re.compile(r"-\d+-of-\d+\.")
SHOWN = 3


def weights_file(folder: Path) -> Path:
    """The safetensors file of a part's folder, or the index of several. Raises ModelError."""
    path = next((folder / name for name in (*WEIGHT_FILES, *INDEX_FILES) if (folder / name).is_file()), None)
    if path is None:
        raise no_weights(folder, WEIGHT_FILES)
    for file in files_of(path):
        check_is_data(file)
    return path


def no_weights(folder: Path, expected: Sequence[str]) -> ModelError:
    """For a folder with none of the `expected` files: what is there instead, and what makes the first of it."""
    others = sorted(path.name for path in folder.glob("*") if path.suffix in CHECKPOINT_SUFFIXES and path.is_file())
    wanted = " or ".join(expected)
    if not others:
        return ModelError(folder, "no weights", wanted)
    got = f"no weights but {', '.join(f'{name} ({_kind(name)})' for name in others[:SHOWN])}"
    if _SHARD.search(others[0]):
        fix = "get the index that belongs to them" if others[0].endswith(SAFETENSORS_SUFFIX) else "join them first"
        return ModelError(folder, got, wanted, fix)
    return ModelError(folder, got, wanted, f"intsr convert {folder / others[0]} -o {folder / expected[0]}")


def _kind(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if _SHARD.search(name):
        return "one of several files, without their index"
    if f".{suffix}" != SAFETENSORS_SUFFIX:
        return "a pickle"
    return f"the variant {stem.partition('.')[2]}" if "." in stem else "another name"


def shards_of_index(index: Path) -> dict[str, set[str]]:
    """Name of each file -> the tensors that it should hold. Raises ModelError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(index, "no weight_map", "names of tensors and the files that hold them")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(SAFETENSORS_SUFFIX):
            raise ModelError(index, f"{shard!r} for {name}", f"the name of a {SAFETENSORS_SUFFIX} file beside it")
        shards.setdefault(shard, set()).add(name)
    return shards


def files_of(path: Path) -> tuple[Path, ...]:
    """The file itself, or those that an index names. Raises ModelError."""
    if path.name not in INDEX_FILES:
        return (path,)
    return tuple(path.parent / shard for shard in shards_of_index(path))


def tensors_of_file(path: Path) -> dict[str, torch.Tensor]:
    """Read one file, or all that an index names; tensors are mapped where possible. Raises ModelError."""
    if path.name not in INDEX_FILES:
        return dict(read_checkpoint(path).tensors)
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in shards_of_index(path).items():
        own = read_checkpoint(path.parent / shard).tensors
        if set(own) != names:
            different = sorted(set(own) ^ names)
            got = f"{', '.join(different[:SHOWN])} and the like: not both in the index and in {shard}"
            raise ModelError(path, got, "an index and the files that belong to it")
        tensors |= own
    return tensors
