"""Graphs and finished builds that several tests of the engines look at."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from intsr.calib.calibration.types import Calibration
from intsr.engines.builders.child import build_each_in_child
from intsr.engines.builders.types import Build, BuildOptions, BuildReport

RTX_MODULE = "intsr.engines.builders.tensorrt_rtx"
BuildRtx = Callable[..., tuple[BuildReport, Path]]


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    import rtx_graphs

    return rtx_graphs


@pytest.fixture(scope="session")
def build_rtx(tmp_path_factory: pytest.TempPathFactory) -> BuildRtx:
    """build_rtx(graph, **options) -> report and the plan's path."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx-cu13 is not installed")

    def build(graph: Any, **options: Any) -> tuple[BuildReport, Path]:
        folder = tmp_path_factory.mktemp("rtx")
        onnx_path = graph.save(folder / "network.onnx")
        plan_path = folder / "network.plan"
        options = BuildOptions("tensorrt-rtx", **options)
        (report,) = build_each_in_child(RTX_MODULE, [Build(onnx_path, plan_path, options)])
        return report, plan_path

    return build


@pytest.fixture(scope="session")
def resblock_build(build_rtx: BuildRtx, graphs: ModuleType) -> tuple[BuildReport, Path]:
    return build_rtx(graphs.resblock())


@pytest.fixture(scope="session")
def attention_build(build_rtx: BuildRtx, graphs: ModuleType) -> tuple[BuildReport, Path]:
    """Int8 linears around fp16 self- and cross-attention."""
    return build_rtx(graphs.attention_block())


@pytest.fixture(scope="session")
def sources(tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What reports are made of; see `write_sources`."""
    from report_pages import write_sources

    return write_sources(tmp_path_factory.mktemp("report"), tiny_calibration)


@pytest.fixture(scope="session")
def made(sources: Path, tiny_folder: Path) -> Any:
    """A `report_pages.Made` of everything at once."""
    from report_pages import make_report

    return make_report(sources, tiny_folder)
