"""A model folder in diffusers' layout, with what one-step inference needs beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch

from intsr.calib.models.prompt import CONTEXT_NAME
from intsr.calib.models.spec import SPEC_NAME, ModelSettings
from intsr.calib.models.tensor_files import write_safetensors
from intsr.calib.models.video_spec import VideoSettings
from intsr.calib.models.weights import INDEX_FILES, WEIGHT_FILES, class_name
from intsr.files import atomic_folder

# Makes the tensors of one file, by name.
Shard: TypeAlias = Callable[[], dict[str, torch.Tensor]]
# part, configuration, what makes each of its files
NetworkFiles: TypeAlias = tuple[str, Mapping[str, Any], Sequence[Shard]]


def write_model(
    folder: Path,
    settings: ModelSettings | VideoSettings,
    networks: Iterable[NetworkFiles],
    context: torch.Tensor,
    scheduler: Mapping[str, Any],
) -> int:
    """Write `folder` in one piece; returns the bytes of its weights' files.

    networks: written as they come, and their files as they are made, so that one at a time need be held. context:
    (1, tokens, channels) float32. scheduler: its configuration, as diffusers saves it. Raises UsageError where the
    folder exists.
    """
    metadata = {"format": "pt"} | ({"note": settings.licence} if settings.synthetic else {})
    with atomic_folder(folder, overwrite=False) as temporary:
        for part, config, shards in networks:
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", {"_class_name": class_name(part, config), **config})
            _write_weights(temporary / part, shards, metadata)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", {"_class_name": "DDPMScheduler", **scheduler})
        write_safetensors(temporary / CONTEXT_NAME, {"context": context.contiguous()}, {"format": "pt"})
        _write_json(temporary / SPEC_NAME, asdict(settings))
        return sum(path.stat().st_size for path in temporary.rglob("*.safetensors"))


def _write_weights(folder: Path, shards: Sequence[Shard], metadata: Mapping[str, str]) -> None:
    """One file, or several and their index, as diffusers names them."""
    stem, suffix = WEIGHT_FILES[0].rsplit(".", 1)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for index, make in enumerate(shards):
        name = f"{stem}-{index + 1:05}-of-{len(shards):05}.{suffix}" if len(shards) > 1 else WEIGHT_FILES[0]
        tensors = make()
        write_safetensors(folder / name, tensors, metadata)
        weight_map |= dict.fromkeys(tensors, name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        del tensors  # before the next ones are made
    if len(shards) > 1:
        _write_json(folder / INDEX_FILES[0], {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
