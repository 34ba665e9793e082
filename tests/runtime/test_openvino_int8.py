"""Integers on CPUs without VNNI, which OpenVINO can be told to take this one for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builds import built_in_this_process

from intsr.engines.builders.types import BuildOptions
from intsr.engines.compile.assemble import compile_engine
from intsr.export.pipeline import export_model
from intsr.targets.lowering import LOWERINGS

if TYPE_CHECKING:
    from intsr.calib.calibration.types import Calibration
    from intsr.calib.models.open import SRModel

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="instruction sets of x86"
)

# Both read it: the plugin for what it may choose, oneDNN for its kernels.
OLDER = dict.fromkeys(("OV_CPU_MAX_ISA", "ONEDNN_MAX_CPU_ISA"), "AVX2")
# A convolution of every code by weights up to the given one, as an engine's network is opened. Prints how far it is
# off, plain and as ours, and how many bytes of floats we made.
CODE = """
import json, sys
import numpy as np, openvino
from openvino import opset13 as op
from intsr.runtime.backends.openvino.int8 import largest_exact_code, make_floats_of_wide_codes

most = int(sys.argv[1])
x = op.parameter([1, 32, 16, 16], np.float32)
ends = [op.constant(np.float32(end)) for end in (0, 255, 0, 255)]
codes = np.random.default_rng(0).choice(np.array([-most, most], np.int8), (32, 32, 3, 3), p=[0.1, 0.9])
scale = op.constant(np.full((32, 1, 1, 1), 1 / 64, np.float32))
weight = op.multiply(op.convert(op.constant(codes), np.float32), scale)
y = op.convolution(op.fake_quantize(x, *ends, 256), weight, [1, 1], [0, 0], [0, 0], [1, 1])
pixels = np.random.default_rng(1).integers(0, 256, (1, 32, 16, 16)).astype(np.float32)
blocks = np.lib.stride_tricks.sliding_window_view(pixels[0], (3, 3), (1, 2))
expected = np.einsum("oikl,ihwkl->ohw", codes / 64, blocks)
model, off, made = openvino.Model([y], [x]), [], 0
for ours in (False, True):
    made = make_floats_of_wide_codes(model) if ours else 0
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    off.append(float(np.abs(compiled(pixels)[0][0] - expected).max() / np.abs(expected).max()))
(kernel,) = {
    info.value if hasattr(info := node.get_rt_info()["runtimePrecision"], "value") else info
    for node in compiled.get_runtime_model().get_ops()
    if node.get_rt_info()["layerType"] == "Convolution"
}
print(json.dumps([largest_exact_code(), made, *off, str(kernel)]))
"""
FLOATS_BYTES = 4 * 32 * 32 * 3 * 3


def _child(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_products_that_16_bits_do_not_hold_are_right_everywhere() -> None:
    limit, made, plain, ours, kernel = json.loads(_child(CODE, 127, **OLDER))
    if plain < 0.1:
        pytest.skip("this OpenVINO does not let itself be told, or computes exactly")
    assert (limit, made, kernel) == (64, FLOATS_BYTES, "f32")
    assert ours < 1e-5


@pytest.mark.parametrize("most", [63, 64])
def test_weights_of_seven_bits_are_multiplied_as_bytes_everywhere(most: int) -> None:
    _, made, plain, ours, kernel = json.loads(_child(CODE, most, **OLDER))
    assert (made, kernel) == (0, "u8") and plain == ours < 1e-6


def test_on_this_cpu() -> None:
    limit, made, plain, ours, _ = json.loads(_child(CODE, 127))
    assert limit == (127 if plain < 1e-3 else 64) and made == (0 if limit == 127 else FLOATS_BYTES)
    assert ours < 1e-3


OPEN = """
import sys
from intsr.runtime.engine import open_engine
with open_engine(sys.argv[1], threads=1, precision="f32") as engine:
    print(engine.backend.notes)
"""


@pytest.mark.parametrize(("bits", "noted"), [(8, True), (7, False)])
def test_it_is_said(
    bits: int, noted: bool, tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    sites = {site: replace(quantizer, weight_bits=bits) for site, quantizer in tiny_calibration.sites.items()}
    calibration = replace(tiny_calibration, sites=sites)
    export_model(tiny_model, calibration, LOWERINGS["asymmetric-cpu"], 16, tmp_path / "onnx")
    with built_in_this_process():
        compile_engine(tmp_path / "onnx", tmp_path / "x.engine", BuildOptions("cpu", detailed=False))
    # The second time from what was kept.
    for _ in range(2):
        said = _child(OPEN, tmp_path / "x.engine", XDG_CACHE_HOME=str(tmp_path / "cache"), **OLDER)
        assert ("computed in float32, slower" in said) is noted
    assert len(list((tmp_path / "cache" / "intsr" / "openvino").iterdir())) == 3
