"""The Triton kernel: interpreted on the CPU against its reference, and compiled for GPUs."""

import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import util

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from intsr.kernels import triton_norm
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference.group_norm import NormQuantize

SCRIPT = """
import numpy as np, torch
from intsr.errors import UsageError
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference.group_norm import NormQuantize, group_norm_quantize
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


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from intsr.kernels import triton_norm
kernel = triton_norm._compiled_on_use()
names = [param.name for param in kernel.params]
kinds = {"x_pointer": "*fp16", "out_pointer": "*i8", "epsilon": "fp32"}
# Triton makes a constant of a whole number that is 1.
for capability, group_size, ones in ((80, 10, []), (86, 4, ["zero_point"]), (90, 80, ["pixels"]), (120, 10, [])):
    columns = 1 << (group_size - 1).bit_length()
    constants = {"group_size": group_size, "columns": columns, "rows": 4096 // columns, "activation": True}
    constants |= dict.fromkeys(ones, 1)
    types = {name: kinds.get(name, "*fp32" if name.endswith("_pointer") else "i32") for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, {(names.index(name),): value for name, value in constants.items()}, {})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in made.asm["ptx"] and made.asm["cubin"][:4] == bytes([127]) + b"ELF"
    print(capability)
"""
NO_TRITON = pytest.mark.skipif(util.find_spec("triton") is None, reason="triton is not installed (extra: triton)")


@NO_TRITON
def test_the_kernel_compiles_for_gpus(tmp_path) -> None:
    """The interpreter takes what the compiler does not, annotations of other modules for one."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["80", "86", "90", "120"]


def test_the_kernel_is_launched_on_the_gpu_that_has_the_tensor(monkeypatch) -> None:
    """Not on torch's current one. The tensors have no memory, the launch is recorded."""
    events: list[object] = []

    @contextmanager
    def on(device):
        events.append(device)
        yield
        events.append("left")

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: events.append(grid)

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(triton_norm, "_compiled_on_use", Kernel)
    ones = np.ones(8, np.float32)
    norm = NormQuantize(ones, ones, 2, 1e-5, True, ones, ones, QuantParams(1, 0, 8))
    triton_norm.group_norm_quantize_triton(torch.zeros(1, 2, 2, 8, dtype=torch.float16), norm)
    assert events == [(1, 2)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(3, 2, 2, 8, dtype=torch.float16, device="cuda:1")
        assert triton_norm.group_norm_quantize_triton(x, norm).device == x.device
    assert events[1:] == [torch.device("cuda:1"), (3, 2), "left"]


@NO_TRITON
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
