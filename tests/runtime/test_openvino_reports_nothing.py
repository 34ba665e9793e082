"""OpenVINO's telemetry, which would report every import, stays out of the processes of this package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LOADED = "import sys; print(*(name for name, module in sys.modules.items() if 'telemetry' in name and module))"
OPENED = "import intsr; intsr.open_engine({!r}).close()"
CONVERTED = "import intsr.engines.builders.openvino, openvino; openvino.convert_model"


@pytest.mark.parametrize("work", [OPENED, CONVERTED], ids=["upscaling", "compiling"])
def test_openvino_is_given_a_stub(make_engine: Callable[..., Path], work: str) -> None:
    code = f"{work.format(str(make_engine('cpu')))}; {LOADED}"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = run.stdout.split()
    assert "openvino.tools.ovc.telemetry_stub" in names
    assert not [name for name in names if name.startswith("openvino_telemetry")]
