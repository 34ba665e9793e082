"""The modules of ComfyUI that a pack of nodes imports, in our own words, and how it loads a pack.

Written down from the source of Comfy-Org/ComfyUI 0.3.64, commit a125cd84b054 of 2025-10-11: `load_custom_node` of
`nodes.py`, `comfy_api/latest/_io.py`, `folder_paths.py`, `comfy/utils.py`, `comfy/model_management.py`. Compared on
2026-11-30 with files of later commits, up to 0.38.1 (`nodes.py` of commit 02217e36a45b, `_io.py` of 04e2a9143342,
`folder_paths.py` of 1df2885ebd28, `comfy/utils.py` of 09708eae709a, `comfy/model_management.py` of 02b2b3886164).
What nodes see differs by this: `on_load` is called, bars report less often than they are set, and what stops a run
is no `Exception`. Arguments that only those know are refused here. The documentation (Comfy-Org/docs,
`custom-nodes/v3_migration.mdx` of commit 12eb87263f5a, `registry/specifications.mdx` of 0e3bc1c70ef8, read the same
day) says that the older schema, `NODE_CLASS_MAPPINGS`, gets no new features.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

Progress = list[tuple[int, int]]


class EarlierInterrupt(Exception):
    """`InterruptProcessingException` of 0.3.64."""


class LaterInterrupt(BaseException):
    """`InterruptProcessingException` of later commits."""


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: Any = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution


@dataclass
class Input:
    """An input without a widget. `info`: what the frontend is told of it, what was left out left out."""

    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    io_type: str = field(init=False, default="")

    @property
    def info(self) -> dict[str, Any]:
        hidden = ("id", "io_type", "optional")
        return {key: value for key, value in vars(self).items() if value is not None and key not in hidden}


@dataclass
class IntInput(Input):
    default: int | None = None
    min: int | None = None
    max: int | None = None
    step: int | None = None
    control_after_generate: bool | None = None
    display_mode: Any = None
    socketless: bool | None = None
    force_input: bool | None = None


@dataclass
class ComboInput(Input):
    # Second in ComfyUI's own order; by name here as there.
    options: list[str] | None = None
    default: str | None = None
    control_after_generate: bool | None = None
    upload: Any = None
    image_folder: Any = None
    remote: Any = None
    socketless: bool | None = None


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type: str = field(init=False, default="")


def _type(name: str, input_class: type[Input] = Input) -> Any:
    """Return a type of ComfyUI's: `.Input(...)` and `.Output(...)` of it."""

    def of(made: type) -> Callable[..., Any]:
        def make(*arguments: Any, **named: Any) -> Any:
            item = made(*arguments, **named)
            item.io_type = name
            return item

        return make

    return SimpleNamespace(io_type=name, Input=of(input_class), Output=of(Output))


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    hidden: list[Any] | None = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def check(self) -> None:
        """Raises ValueError where two inputs, two outputs, or one of each have an id in common."""
        for index, output in enumerate(self.outputs or []):
            output.id = output.id or f"_{index}_{output.io_type}_"
        ids = [item.id for item in (*(self.inputs or []), *(self.outputs or []))]
        if len(set(ids)) < len(ids):
            raise ValueError(f"ids are not unique: {ids}")


class ComfyNode:
    """Class methods all: ComfyUI makes a locked clone of the class for each execution, and no instance."""

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **inputs: Any) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        schema = cls.define_schema()
        schema.check()
        # ComfyUI calls it with the inputs by their ids.
        names = list(inspect.signature(cls.execute).parameters)
        assert names == [item.id for item in schema.inputs or []], names
        return schema


class ComfyExtension(ABC):
    async def on_load(self) -> None:  # noqa: B027
        """Called before the nodes are asked for."""

    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]: ...


@dataclass
class FakeComfyUI:
    """The state that nodes see: folders, bars, and whether the user has stopped the run."""

    models: Path
    folders: dict[str, tuple[list[str], set[str]]] = field(default_factory=dict)
    # Of every bar: what it was set to, and its end then.
    bars: list[Progress] = field(default_factory=list)
    # How often nodes may ask whether to go on before the answer is no.
    patience: int | None = None
    interrupt: type[BaseException] = LaterInterrupt
    nodes: dict[str, type[ComfyNode]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add_model_folder_path(self, folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
        paths, _ = self.folders.setdefault(folder_name, ([], set()))
        if full_folder_path not in paths:
            paths.insert(0 if is_default else len(paths), full_folder_path)

    def get_filename_list(self, folder_name: str) -> list[str]:
        """Relative names with one of the suffixes, in subfolders too; all where none is asked for."""
        paths, suffixes = self.folders[folder_name]
        return sorted(
            str(path.relative_to(folder))
            for folder in paths
            for path in Path(folder).rglob("*")
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes)
        )

    def get_full_path_or_raise(self, folder_name: str, filename: str) -> str:
        # Whatever it is called, it lies below: `..` leads nowhere above the root.
        inside = os.path.normpath(f"/{filename}").lstrip("/")
        for folder in self.folders[folder_name][0]:
            if (path := Path(folder, inside)).is_file():
                return str(path)
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.patience is not None:
            self.patience -= 1
            if self.patience < 0:
                # Asked for once: the next run begins anew.
                self.patience = None
                raise self.interrupt

    def modules(self) -> dict[str, ModuleType]:
        """Name -> what `import` gives."""
        fake = self

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total, self.current, self.steps = total, 0, Progress()
                fake.bars.append(self.steps)

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.total = self.total if total is None else total
                self.current = min(value, self.total)
                self.steps.append((self.current, self.total))

        io = SimpleNamespace(
            Schema=Schema,
            ComfyNode=ComfyNode,
            NodeOutput=NodeOutput,
            Custom=_type,
            Image=_type("IMAGE"),
            Int=_type("INT", IntInput),
            Combo=_type("COMBO", ComboInput),
        )
        stop = self.throw_exception_if_processing_interrupted
        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {"throw_exception_if_processing_interrupted": stop},
            "comfy_api": {},
            "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": io},
            "folder_paths": {
                "models_dir": str(self.models),
                "folder_names_and_paths": self.folders,
                "add_model_folder_path": self.add_model_folder_path,
                "get_filename_list": self.get_filename_list,
                "get_full_path_or_raise": self.get_full_path_or_raise,
            },
        }
        made = {name: ModuleType(name) for name in contents}
        for name, module in made.items():
            vars(module).update(contents[name])
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(made[parent], last, module)
        return made

    @contextmanager
    def loaded(self, pack: Path) -> Iterator[ModuleType]:
        """Import a pack and register its nodes, as ComfyUI does at its start; all is forgotten afterwards."""
        name = str(pack).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, pack / "__init__.py")
        assert spec is not None and spec.loader is not None
        module, before = importlib.util.module_from_spec(spec), dict(sys.modules)
        sys.modules.update(self.modules() | {name: module})
        try:
            spec.loader.exec_module(module)
            self._register(module)
            yield module
        finally:
            for other in set(sys.modules) - set(before):
                if other.startswith((name, "comfy", "folder_paths")):
                    del sys.modules[other]

    def _register(self, module: ModuleType) -> None:
        # Where it has the older schema's mappings, ComfyUI looks no further.
        assert not hasattr(module, "NODE_CLASS_MAPPINGS")
        entrypoint = module.comfy_entrypoint
        extension = asyncio.run(entrypoint()) if inspect.iscoroutinefunction(entrypoint) else entrypoint()
        assert isinstance(extension, ComfyExtension)
        asyncio.run(extension.on_load())
        nodes = asyncio.run(extension.get_node_list())
        assert isinstance(nodes, list)
        for node in nodes:
            schema = node.GET_SCHEMA()
            assert schema.node_id not in self.nodes
            self.nodes[schema.node_id] = node
            if schema.display_name is not None:
                self.names[schema.node_id] = schema.display_name
