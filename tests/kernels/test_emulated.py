"""The kernels' CUDA sources, run on the CPU a thread at a time, and launched through a stub of the driver."""

import json
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from intsr.cuda.driver import CudaDevice
from intsr.errors import BuildError, VerificationError
from intsr.kernels import selfcheck
from intsr.kernels.checks.group_norm_plugin import plugin_check
from intsr.kernels.devices import emulated as emulate
from intsr.kernels.launches import sources
from intsr.kernels.launches.group_norm_plugin import PluginNorm, plugin_launch
from intsr.kernels.launches.launch import Launch, Plan
from intsr.kernels.launches.parameters import SOURCES, ReadParams

try:
    emulate.find_cpp_compiler()
    NO_COMPILER = ""
except BuildError as error:
    NO_COMPILER = str(error)
pytestmark = [pytest.mark.kernels, pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "-")]
needs_cuda_python = pytest.mark.skipif(util.find_spec("cuda") is None, reason="cuda-bindings is not installed")


def test_every_kernel_agrees_with_its_reference():
    """In a process of its own: a read past an array's end is a segmentation fault there."""
    command = [sys.executable, "-m", "intsr.kernels.selfcheck", "--emulate", "--json", "--seed", "12"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    checks = json.loads(result.stdout)["checks"]
    assert len(checks) > 40 and all(check["passed"] for check in checks)


def test_the_example_runs():
    example = sources.FOLDER.resolve().parents[1] / "examples" / "kernels" / "int8_matmul.py"
    result = subprocess.run([sys.executable, example, "--emulate"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 8, result.stdout + result.stderr


def test_the_gpu_check_goes_through_every_step(tmp_path):
    script = sources.FOLDER.resolve().parents[1] / "examples" / "gpu_check.py"
    command = [sys.executable, script, "--emulate", "-o", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(steps) == ["machine", "kernels", "products", "calibration", "baseline", "onnxruntime_cuda"]
    assert all("seconds" in step and not step.get("failed") for step in steps.values())
    assert all(row["ours_64_equal"] and row["ours_128_equal"] for row in steps["products"]["layers"])
    assert "| conv |" in (tmp_path / "gpu-check.md").read_text()


def changed_device(monkeypatch, tmp_path, source, old, new):
    shutil.copytree(sources.FOLDER, tmp_path / "cuda")
    path = tmp_path / "cuda" / f"{source}.cu"
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(sources, "FOLDER", tmp_path / "cuda")
    # Not among the real ones.
    monkeypatch.setattr(emulate.tempfile, "gettempdir", lambda: str(tmp_path))
    emulate._library.cache_clear()
    return emulate.EmulatedDevice()


@pytest.fixture(autouse=True)
def _own_libraries():
    yield
    emulate._library.cache_clear()


def test_a_missing_barrier_is_noticed(monkeypatch, tmp_path):
    behind = "    if (thread < groups)\n        shared.moments[2 * thread] ="
    device = changed_device(monkeypatch, tmp_path, "group_norm_plugin", f"    sync_all<CLUSTER>();\n{behind}", behind)
    norm = PluginNorm(32, 1e-5, True)
    check = plugin_check(np.random.default_rng(0), (1, 64, 8, 5), norm, "last", "codes", way="cluster")
    assert not selfcheck.run_check(device, check, None).passed


def test_a_barrier_that_some_threads_skip_is_an_error(monkeypatch, tmp_path):
    old, new = "    uint32_t sum = 0;\n", "    if (threadIdx.x < 64) __syncthreads();\n    uint32_t sum = 0;\n"
    device = changed_device(monkeypatch, tmp_path, "measure", old, new)
    out = device.empty((8,), np.uint32)
    plan = Plan((Launch("read_words", (1, 1, 1), 256, ReadParams(words=None, out=out, count=0)),), out)
    with pytest.raises(VerificationError, match="barrier that some threads never reach"):
        device.run(plan)


@pytest.mark.parametrize("layout", ["linear", "last"])
def test_blocks_that_share_a_group_give_what_one_block_gives(layout):
    """To the last bit: each adds up the whole group in the same order. Part of it is held, the rest read again."""
    device = emulate.EmulatedDevice((8, 6))
    shape, norm = (1, 16, 136, 64), PluginNorm(2, 1e-5, True)
    assert plugin_launch(shape, norm, "linear", "codes", "shared").numbers[4] < 136 * 64 // 4
    results = [
        device.download(
            device.run(plugin_check(np.random.default_rng(0), shape, norm, layout, "codes", way=way).plan(device))
        )
        for way in ("block", "shared")
    ]
    np.testing.assert_array_equal(*results)


def test_reading_for_the_caches_leaves_nothing_out():
    """Blocks, a batch and a half for each, and a rest."""
    device, blocks, count = emulate.EmulatedDevice(), 3, 3 * 256 * 6 + 77
    words = np.random.default_rng(0).integers(0, 1 << 32, (count, 4), dtype=np.uint32)
    out, uploaded = device.empty((blocks * 8,), np.uint32), device.upload(words)
    launch = Launch("read_words", (blocks, 1, 1), 256, ReadParams(words=uploaded, out=out, count=count))
    got = device.download(device.run(Plan((launch,), out, (uploaded,))))
    warps = np.arange(count) // 32 % (blocks * 8)
    expected = [int(words[warps == warp].sum(dtype=np.uint64)) % (1 << 32) for warp in range(blocks * 8)]
    assert got.tolist() == expected


STUB = Path(__file__).parent / "stub_driver.c"
SCRIPT = """
import inspect, re, sys
from pathlib import Path
import numpy as np
from intsr.cuda import driver
from intsr.cuda.driver import list_devices
from intsr.errors import IntsrError
from intsr.kernels import selfcheck
from intsr.kernels.checks import group_norm_plugin, picture
from intsr.kernels.devices import cuda as devices
from intsr.kernels.launches.picture import plan_accumulate
from intsr.kernels.launches.parameters import PixelsParams

tried, checked = set(), driver._checked
driver._checked = lambda library, where, name, *rest: tried.add(name) or checked(library, where, name, *rest)
image = Path(sys.argv[1])
image.write_bytes(bytes.fromhex("50ed55ba") * 4)
devices.fatbin_path = lambda source: image
try:
    device = devices.GpuDevice()
except IntsrError as error:
    sys.exit(str(error))
print(list_devices("cuda-python", "e.engine", "gpu"))
rng, cuda = np.random.default_rng(0), device._cuda
devices._FLUSH_BYTES = 1 << 20

# Arrays and their streams.
plan = picture.pixels_check(rng, 9, 7).plan(device)
assert plan.output.__cuda_array_interface__["stream"] == 7
out = np.zeros((3, 8, 8), np.float32)
interface = device.upload(out).__cuda_array_interface__ | {"stream": 5}
foreign = type("Foreign", (), {"__cuda_array_interface__": interface})
tile = device.upload(np.zeros((1, 3, 8, 8), np.float16))
accumulated = plan_accumulate(device, foreign, tile, *[device.upload(out[0, 0])] * 2, top=0, left=0)
assert accumulated.output.stream == 5 and device.run(accumulated).stream == 7

# What is timed: caches emptied, then the graph alone.
called, call = [], cuda._call
cuda._call = lambda name, *arguments: called.append(name) or call(name, *arguments)
assert device.milliseconds(plan, 1) == 1.5 and device.copy_milliseconds(64, 1) == 1.5
turn = ["cuMemsetD8Async", "cuLaunchKernel", "cuEventRecord", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"]
start = called.index("cuMemsetD8Async")
assert [name for name in called[start:] if name in turn][:24] == turn * 4, called[start:]
del cuda._call

# One launch of each kind: a struct, parameters one by one, those with a cluster.
plugin = group_norm_plugin.small_checks(rng, True)
chosen = [
    picture.resize_check(rng, 5, 19, "lanczos"),
    *[check for check in plugin if check.name in ("plugin linear codes", "plugin last halves cluster")][:3],
]
for check in chosen:
    result = selfcheck.run_check(device, check, 100.0, 1)
    assert result.passed and result.time_ms == 1.5, result.line()

# The rest of the face.
stream, pinned, address = cuda.create_stream(), cuda.alloc_pinned(24), cuda.alloc(24)
pinned[:] = range(24)
cuda.upload(address, pinned, stream)
cuda.clear(address, 8, stream)
cuda.download(pinned, address, stream)
assert pinned.tolist() == [0] * 8 + list(range(8, 24)) and cuda.memory_info() == (1 << 33, 1 << 34)
cuda.wait_for_foreign(stream, 7), cuda.synchronize_device(), cuda.synchronize_event(cuda.create_event())
cuda.begin_capture(stream), cuda.abandon_capture(stream)
cuda.free_pinned(pinned), cuda.free(address)
module, params = cuda.load_module(image.read_bytes()), PixelsParams(planes=None, out=None, count=0)
kernel = cuda.kernel(module, "luma_from_unit", params.places())
for more in ({"shared_bytes": 100_000}, {"cluster": 2}):
    one = {"grid": (2, 1, 1), "block": 256, "shared_bytes": 0, "params": bytes(params), "stream": stream}
    cuda.launch_kernel(kernel, **one | more)
for wrong in (
    lambda: cuda.alloc(1 << 34),
    lambda: cuda.load_module(bytes(16)),
    lambda: cuda.kernel(module, "luma_from_unit", ((0, 8),)),
    lambda: cuda.launch_kernel(
        kernel, cuda._driver.CUstream(8), grid=(1, 1, 1), block=256, shared_bytes=0, params=bytes(params)
    ),
):
    try:
        wrong()
    except IntsrError as error:
        print(type(error).__name__, error)
cuda.unload_module(module), cuda.destroy_stream(stream)
assert set(re.findall(r'"(cu[A-Z]\\w+)"', inspect.getsource(driver))) == tried
"""


FAULT = """
import pathlib, sys
from intsr.kernels import selfcheck
from intsr.kernels.devices import cuda as launch
image = pathlib.Path(sys.argv[1])
image.write_bytes(bytes.fromhex("50ed55ba") * 4)
launch.fatbin_path = lambda source: image
checks, selfcheck.measure_peak = selfcheck.all_checks, lambda device: None
selfcheck.all_checks = lambda rng, clusters, full: checks(rng, clusters, False)
sys.exit(selfcheck.main(["--seed", "3"]))
"""


def run_on_stub(tmp_path, script=SCRIPT, **environment):
    compiler = emulate.find_cpp_compiler()
    library = tmp_path / "libcuda.so.1"
    flags = ["-x", "c", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*compiler, *flags, str(STUB), "-o", str(library), "-ldl"], check=True)
    kernels = ":".join(emulate._library(source)._name for source in SOURCES)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "INTSR_STUB_KERNELS": kernels} | environment
    command = [sys.executable, "-c", script, str(tmp_path / "image")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@needs_cuda_python
def test_launches_through_cuda_python(tmp_path):
    """All calls and each kind of launch, by the real cuda-python on a driver library that has no GPU behind it."""
    result = run_on_stub(tmp_path)
    assert result.returncode == 0, result.stderr
    device, memory, image, parameters, stream = result.stdout.splitlines()
    assert device == str([CudaDevice(0, "stub GPU", (9, 0), 1 << 34, "13.0", 2, 232448)])
    assert memory.startswith("OutOfMemoryError GPU: the GPU is out of memory (cuMemAlloc reports")
    assert "EngineMismatchError GPU: CUDA failed: cuModuleLoadData reports CUDA_ERROR_INVALID_IMAGE" in image
    assert "takes 24 bytes of parameters at 0; expected 8 bytes at 0; build the kernels again" in parameters
    assert "CUDA failed: cuLaunchKernel reports CUDA_ERROR_INVALID_VALUE" in stream


@needs_cuda_python
def test_an_old_gpu_is_refused(tmp_path):
    result = run_on_stub(tmp_path, INTSR_STUB_OLD="1")
    assert result.returncode == 1
    assert result.stderr.strip() == "GPU: stub GPU of compute capability 7.0; expected 8.0 or newer"


@needs_cuda_python
def test_a_kernel_s_fault_ends_selfcheck_with_its_name(tmp_path):
    """The driver reports it where something waits for it, and from then on everywhere."""
    result = run_on_stub(tmp_path, FAULT, INTSR_STUB_FAULT="adain_sums")
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-3].startswith("FAIL adain 1x1: GPU: CUDA failed: cu") and "CUDA_ERROR_ILLEGAL_ADDRESS;" in lines[-3]
    assert lines[-2] == "stopped: the GPU's context is lost with adain 1x1; later checks were not run"
    assert lines[-1] == f"{len(lines) - 3} checks, 1 failed" and len(lines) > 10
