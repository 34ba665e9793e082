"""The Triton kernel, interpreted on the CPU, against its reference."""

import os
import subprocess
import sys
from importlib import util

import pytest

SCRIPT = """
import numpy as np, torch
from intsr.errors import UsageError
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference_norm import NormQuantize, group_norm_quantize
from intsr.kernels.triton_norm import group_norm_quantize_triton
rng = np.random.default_rng(0)
for shape, groups, activation, zero_point in (
    ((2, 5, 7, 40), 4, True, 16), ((1, 9, 8, 64), 32, False, 130), ((1, 33, 3, 24), 1, True, -40)
):
    constants = [rng.normal(0, 0.3, shape[3]).astype(np.float32) for _ in range(4)]
    gamma, beta, shift, spread = constants
    norm = NormQuantize(
        1 + gamma, beta, groups, 1e-5, activation, np.exp(spread), shift, QuantParams(0.015625, zero_point, 8)
    )
    x = rng.normal(3, 2, shape).astype(np.float16)
    expected = group_norm_quantize(x, norm).astype(int)
    got = group_norm_quantize_triton(torch.from_numpy(x), norm).numpy().astype(int)
    assert len(np.unique(expected)) > 20
    assert np.abs(got - expected).max() <= 1 and (got != expected).mean() < 0.005, (shape, (got != expected).mean())
try:
    group_norm_quantize_triton(torch.from_numpy(x).permute(0, 2, 1, 3), norm)
except UsageError as error:
    print(error)
"""


@pytest.mark.skipif(util.find_spec("triton") is None, reason="triton is not installed (extra: triton)")
def test_interpreted_kernel_agrees_with_its_reference():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "expected contiguous float16 (N, H, W, 24)" in result.stdout


def test_without_triton_the_extra_is_named() -> None:
    """In a process of its own, where nothing has imported it yet."""
    code = SCRIPT.partition("rng =")[0].replace(
        "import numpy", "import sys; sys.modules['triton'] = None; import numpy"
    )
    code += """
from intsr.errors import MissingLibraryError
ones = np.ones(8, np.float32)
norm = NormQuantize(ones, ones, 1, 1e-5, True, ones, ones, QuantParams(1, 0, 8))
try:
    group_norm_quantize_triton(torch.zeros(1, 2, 2, 8, dtype=torch.float16), norm)
except MissingLibraryError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "intsr[triton]" in result.stdout, result.stderr
