"""A model repository for Triton Inference Server, written whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from intsr.bundle import Bundle
from intsr.errors import BundleError, UsageError
from intsr.files import atomic_folder
from intsr.json_files import read_json
from intsr.runtime.backends.codes import unpacked
from intsr.runtime.serve import triton_model
from intsr.runtime.serve.config import capability_of, pictures_config, plan_config
from intsr.runtime.serve.worker import DEFAULTS
from intsr.targets import target_from_name

MARKER = "intsr-repository.json"
SCHEMA_VERSION = 1
# Its plans are what Triton's own TensorRT backend reads.
_PLANS = "tensorrt"


@dataclass(frozen=True, slots=True)
class Repository:
    """The marker: which models a folder holds."""

    schema_version: int
    intsr_version: str
    models: tuple[str, ...]


def write_repository(
    engines: Sequence[Path], folder: Path, python: str, overwrite: bool
) -> tuple[Repository, list[str]]:
    """Write a model for each engine, and one for each plan of those of target `tensorrt`; notes are for people.

    python: the one that has intsr, where the server runs.
    Raises UsageError: a name that is no model's, or two of one name, a folder that must not be replaced; BundleError.
    """
    names, notes = list[str](), list[str]()
    with atomic_folder(folder, overwrite, MARKER, _earlier_models(folder)) as temporary:
        for engine in engines:
            with Bundle(engine) as bundle:
                bundle.check()
                names += [_write_pictures_model(bundle, temporary, python), *_write_plans(bundle, temporary, notes)]
                if not bundle.is_unchanged():
                    raise BundleError(engine, "was written into while it was read", fix="try again")
        repository = Repository(SCHEMA_VERSION, version("intsr"), tuple(names))
        (temporary / MARKER).write_text(json.dumps(asdict(repository), indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_readme(repository, python), encoding="utf-8")
    return repository, notes


def _new_model(folder: Path, name: str, engine: Path) -> Path:
    """Make a model's folder, and return that of its first version. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        expected = "letters, digits and _ . - in the name, which becomes the model's"
        raise UsageError(engine, f"name {name!r}", expected, "rename the file")
    if (folder / name).exists():
        raise UsageError(engine, f"a second model called {name}", "different names", "rename the file")
    (folder / name / "1").mkdir(parents=True)
    return folder / name / "1"


def _earlier_models(folder: Path) -> tuple[str, ...]:
    """Names of the folders that a repository holds, () where it is none. Raises UsageError."""
    marker = folder / MARKER
    if not marker.is_file():
        return ()
    return read_json(marker, Repository, version=SCHEMA_VERSION, fix="choose another output").models


def _write_pictures_model(bundle: Bundle, folder: Path, python: str) -> str:
    name, manifest = bundle.path.stem, bundle.manifest
    version_folder = _new_model(folder, name, bundle.path)
    shutil.copyfile(bundle.path, version_folder / "model.engine")
    shutil.copyfile(triton_model.__file__, version_folder / "model.py")
    parameters = DEFAULTS | {"tile": str(manifest.tile_px), triton_model.PYTHON: python}
    config = pictures_config(name, manifest, parameters, on_gpu=target_from_name(manifest.target).gpu)
    (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return name


def _write_plans(bundle: Bundle, folder: Path, notes: list[str]) -> Iterator[str]:
    """Write each network at the default tile as a model of its own, where Triton has a backend for it."""
    manifest = bundle.manifest
    if manifest.target != _PLANS:
        if target_from_name(manifest.target).gpu:
            notes.append(f"{bundle.path}: no model for each plan: Triton's backends load none of {manifest.target}")
        return
    capability = capability_of(manifest.gpu_architecture)
    plan_name = f"{manifest.gpu_architecture}.plan" if capability else "model.plan"
    for network in manifest.networks:
        name = f"{bundle.path.stem}_{network.name}"
        plan_path = _new_model(folder, name, bundle.path) / plan_name
        with bundle.member(network.member) as view:
            plan_path.write_bytes(unpacked(view, f"{bundle.path}:{network.member}"))
        config = plan_config(name, network, plan_name, capability)
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
        yield name


def _readme(repository: Repository, python: str) -> str:
    return f"""\
# Models for Triton Inference Server

Written by intsr {repository.intsr_version}: {", ".join(repository.models)}.

What a server needs:

- The Python backend, of any release and any Python. The engine runs in a process of its own.
- A Python with intsr {repository.intsr_version} for that process: {python}, by each `config.pbtxt`.
  For engines of GPU targets it needs the library that built them, of its release: `intsr inspect ENGINE` names it.
- Shared memory for the pictures in and out (`--shm-size` of a container).

Start: `tritonserver --model-repository=.` Requests, parameters, failures: docs/use/triton.md of intsr.
"""
