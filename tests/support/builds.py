"""Builds of engines without a process of their own: what tests that look at something else do not wait for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import pytest

from intsr.engines.builders.child import Build
from intsr.engines.builders.types import BuildReport
from intsr.engines.compile import assemble


@contextmanager
def built_in_this_process() -> Iterator[None]:
    def build_each(module: str, builds: Sequence[Build]) -> list[BuildReport]:
        build = import_module(module).build
        return [build(one.onnx_path, one.plan_path, one.options) for one in builds]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "build_each_in_child", build_each)
        yield
