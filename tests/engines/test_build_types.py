from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.engines.builders.types import HARDWARE_COMPATIBILITY, BuildOptions, BuildReport
from intsr.errors import UsageError

OPTIONS = st.builds(
    BuildOptions,
    target=st.sampled_from(["cpu", "tensorrt-rtx"]),
    workspace_bytes=st.none() | st.integers(1, 1 << 40),
    hardware_compatibility=st.sampled_from(HARDWARE_COMPATIBILITY),
    timing_cache=st.none() | st.just(Path("folder/timing.cache")),
    detailed=st.booleans(),
)


@given(OPTIONS)
def test_options_survive_json(options: BuildOptions) -> None:
    assert BuildOptions.from_mapping(json.loads(json.dumps(options.to_mapping()))) == options


def test_report_survives_json() -> None:
    report = BuildReport(1.5, 100, 200, "openvino", "2026.4", "", {"kernels": 3})
    assert BuildReport.from_mapping(json.loads(json.dumps(report.to_mapping()))) == report


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "cpu", "speed": 3}, "unknown field `speed`"),
        ({"target": "cpu", "hardware_compatibility": "all"}, "hardware_compatibility is 'all'"),
        ({"target": "cpu", "workspace_bytes": 0}, "workspace_bytes is 0"),
    ],
)
def test_bad_options_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        BuildOptions.from_mapping(values)
    assert "\n" not in str(caught.value)


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing was built"):
        BuildReport.from_mapping({**BuildReport(1.0, 1, 1, "x", "1").to_mapping(), "plan_bytes": 0})
