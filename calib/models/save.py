"""A model folder in diffusers' layout, with what one-step inference needs beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch

from intsr.calib.models.prompt import CONTEXT_NAME
from intsr.calib.models.spec import SPEC_NAME, ModelSettings
from intsr.calib.models.tensor_files import write_safetensors
from intsr.calib.models.weights import CLASSES, WEIGHT_FILES
from intsr.files import atomic_folder

# part, configuration, tensors by name
NetworkFiles: TypeAlias = tuple[str, Mapping[str, Any], dict[str, torch.Tensor]]


def write_model(
    folder: Path,
    settings: ModelSettings,
    networks: Iterable[NetworkFiles],
    context: torch.Tensor,
    scheduler: Mapping[str, Any],
) -> int:
    """Write `folder` in one piece; returns the bytes of its weights' files.

    networks: written as they come, so that one at a time need be held. context: (1, tokens, channels) float32.
    scheduler: its configuration, as diffusers saves it. Raises UsageError where the folder exists.
    """
    metadata = {"format": "pt"} | ({"note": settings.licence} if settings.synthetic else {})
    with atomic_folder(folder, overwrite=False) as temporary:
        for part, config, tensors in networks:
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", {"_class_name": CLASSES[part], **config})
            write_safetensors(temporary / part / WEIGHT_FILES[0], tensors, metadata)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", {"_class_name": "DDPMScheduler", **scheduler})
        write_safetensors(temporary / CONTEXT_NAME, {"context": context.contiguous()}, {"format": "pt"})
        _write_json(temporary / SPEC_NAME, asdict(settings))
        return sum(path.stat().st_size for path in temporary.rglob("*.safetensors"))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
