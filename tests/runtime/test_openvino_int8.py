"""Integers on CPUs without VNNI, which OpenVINO can be told to take this one for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="instruction sets of x86"
)

# Both read it: the plugin for what it may choose, oneDNN for its kernels.
OLDER = dict.fromkeys(("OV_CPU_MAX_ISA", "ONEDNN_MAX_CPU_ISA"), "AVX2")
# A convolution of every code by the largest weights, as an engine's network is opened; prints how far it is off.
CODE = """
import json, sys
import numpy as np, openvino
from openvino import opset13 as op
from intsr.runtime.backends.openvino.int8 import integer_settings, integers_are_exact

x = op.parameter([1, 32, 16, 16], np.float32)
ends = [op.constant(np.float32(end)) for end in (0, 255, 0, 255)]
codes = np.random.default_rng(0).choice(np.array([-127, 127], np.int8), (32, 32, 3, 3), p=[0.1, 0.9])
scale = op.constant(np.full((32, 1, 1, 1), 1 / 64, np.float32))
weight = op.multiply(op.convert(op.constant(codes), np.float32), scale)
y = op.convolution(op.fake_quantize(x, *ends, 256), weight, [1, 1], [0, 0], [0, 0], [1, 1])
pixels = np.random.default_rng(1).integers(0, 256, (1, 32, 16, 16)).astype(np.float32)
blocks = np.lib.stride_tricks.sliding_window_view(pixels[0], (3, 3), (1, 2))
expected = np.einsum("oikl,ihwkl->ohw", codes / 64, blocks)
off = []
for settings in ({}, integer_settings(True)):
    settings = {"INFERENCE_PRECISION_HINT": "f32", **settings}
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)
    off.append(float(np.abs(compiled(pixels)[0][0] - expected).max() / np.abs(expected).max()))
print(json.dumps([integers_are_exact(), integer_settings(True) == {}, integer_settings(False) == {}, *off]))
"""


def _child(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_products_that_16_bits_do_not_hold_are_right_everywhere() -> None:
    exact, as_they_are, of_floats, plain, ours = json.loads(_child(CODE, **OLDER))
    if plain < 0.1:
        pytest.skip("this OpenVINO does not let itself be told, or computes exactly")
    assert (exact, as_they_are, of_floats) == (False, False, True)
    assert ours < 1e-5


def test_on_this_cpu() -> None:
    exact, as_they_are, of_floats, plain, ours = json.loads(_child(CODE))
    assert exact is as_they_are is (plain < 1e-3) and of_floats is True
    assert ours < 1e-3


OPEN = """
import sys
from intsr.runtime.engine import open_engine
with open_engine(sys.argv[1], threads=1, precision="f32") as engine:
    print(engine.backend.notes)
"""


@pytest.mark.parametrize(("bits", "noted"), [("w8a8", True), ("fp", False)])
def test_it_is_said(make_engine, bits: str, noted: bool) -> None:  # type: ignore[no-untyped-def]
    path: Path = make_engine("cpu", bits=bits)
    assert ("computed in float32, slower" in _child(OPEN, path, **OLDER)) is noted
