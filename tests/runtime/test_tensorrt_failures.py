"""Every failure of the GPU runtime: one line, the right exit code, nothing unchecked for TensorRT, nothing left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from networks import bicubic
from PIL import Image

from intsr.bundle import read_manifest, write_bundle
from intsr.errors import EngineMismatchError, OutOfMemoryError, UsageError
from intsr.runtime.backends.compatibility import list_devices
from intsr.runtime.backends.tensorrt import library as tensorrt_library
from intsr.runtime.engine import open_engine

BACKENDS = ("cuda-python", "pycuda")
# Their engines take float32: see test_device_picture.py for those whose pictures stay on the device.
pytestmark = pytest.mark.filterwarnings("ignore:.* blends its pictures on the CPU:RuntimeWarning")


def _fails(machine, error: type[Exception], words: str, path: Path | None = None, **options: object) -> None:
    with pytest.raises(error, match=words) as caught:
        open_engine(path or machine.engine(), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (4 if error is OutOfMemoryError else 3)  # type: ignore[attr-defined]
    caught.value.__traceback__ = None
    del caught
    machine.assert_nothing_is_left()


@pytest.mark.parametrize(("version", "text"), [(12080, "12.8"), (11080, "11.8")])
def test_a_driver_that_is_too_old_is_not_called_missing(machine, version: int, text: str) -> None:
    machine.driver.version = version
    words = rf"is for CUDA {text}; expected CUDA 13\.0 or newer \(driver R580\); update the NVIDIA driver"
    _fails(machine, EngineMismatchError, words)
    devices, reason = list_devices()
    assert list(devices) == ["cpu"] and "update the NVIDIA driver" in reason


@pytest.mark.parametrize("status", ["CUDA_ERROR_NOT_INITIALIZED", "CUDA_ERROR_NO_DEVICE"])
def test_no_driver(machine, status: str) -> None:
    machine.gpu.fail["cuInit"] = status
    _fails(machine, EngineMismatchError, f"no usable NVIDIA driver .{status}.*intsr compile MODEL")
    machine.gpu.fail["init"] = "cuInit failed: no CUDA-capable device is detected"
    _fails(machine, EngineMismatchError, "no usable NVIDIA driver .cuInit failed", cuda_backend="pycuda")
    assert machine.trt.deserialized == []


def test_no_gpu_at_all(machine) -> None:
    machine.gpu.device_names = ()
    _fails(machine, EngineMismatchError, "it sees no GPU")


@pytest.mark.parametrize(
    ("architecture", "capability"),
    [
        *(("sm90", (8, 9)), ("sm89", (9, 0)), ("sm80+", (7, 5)), ("", (8, 9)), ("sm86,sm120", (8, 9))),
        *(("sm86,sm89,sm120", capability) for capability in [(8, 0), (8, 7), (9, 0), (12, 1)]),
    ],
)
def test_another_architecture(machine, architecture: str, capability: tuple[int, int]) -> None:
    machine.gpu.capability = capability
    path = machine.engine("tensorrt-rtx", gpu_architecture=architecture)
    here = f"sm{capability[0]}{capability[1]}"
    words = f"built for .*; here is cuda:0 .*{here}.*--device, or .*intsr compile MODEL --target tensorrt$"
    _fails(machine, EngineMismatchError, words, path)
    assert machine.trt.deserialized == []


@pytest.mark.parametrize(
    ("architecture", "capability"),
    [
        *(("sm80+", (9, 0)), ("sm120", (12, 0)), ("sm75", (7, 5)), ("sm121", (12, 1))),
        *(("sm86,sm89,sm120", capability) for capability in [(8, 6), (8, 9), (12, 0)]),
    ],
)
def test_architectures_that_fit(machine, architecture: str, capability: tuple[int, int]) -> None:
    machine.gpu.capability = capability
    open_engine(machine.engine(gpu_architecture=architecture)).close()


def test_a_plan_of_another_version_than_its_manifest_says(machine) -> None:
    path = machine.engine(plan_version=(10, 12, 0, 35))
    _fails(machine, EngineMismatchError, r"tensorrt 10\.12\.0\.35; expected 10\.13\.0\.35 by the manifest", path)
    assert machine.trt.deserialized == []


@pytest.mark.parametrize(("content", "words"), [(b"", "has 0 bytes"), (b"\0" * 500, "starts with 0x00000000")])
def test_a_corrupt_plan(machine, content: bytes, words: str) -> None:
    manifest = read_manifest(machine.engine())
    for entry in manifest.networks:
        (machine.folder / entry.member).write_bytes(content)
    path = machine.folder / "corrupt.engine"
    write_bundle(path, manifest, {entry.member: machine.folder / entry.member for entry in manifest.networks})
    _fails(machine, EngineMismatchError, words, path)
    assert machine.trt.deserialized == []


def test_a_plan_of_the_other_library(machine) -> None:
    path = machine.engine(plan_target="tensorrt-rtx")
    _fails(machine, EngineMismatchError, "starts with 0x74727476; expected 0x74727466 of tensorrt", path)


def _build_with_plugin(compiled: str) -> dict[str, object]:
    plugin = {"name": "intsr::group_norm_silu_quantize", "version": "1", "compiled": compiled, "layers": 3}
    return {"plans": {"unet": {"kernels": 9, "plugins": [plugin]}}}


def test_plugins_inside_the_plan_need_nothing_and_others_are_refused(machine) -> None:
    path = machine.engine(build=_build_with_plugin("when it runs"))
    _fails(machine, EngineMismatchError, "unet needs plugin intsr::group_norm_silu_quantize, compiled when it", path)
    assert machine.trt.deserialized == []
    with open_engine(machine.engine(build=_build_with_plugin("ahead-of-time"))):
        assert len(machine.trt.deserialized) == 3
    machine.assert_nothing_is_left()


def test_tensorrt_refuses_the_plan(machine) -> None:
    machine.trt.failures["deserialize"] = "Serialization assertion plan.header.size == blobSize failed."
    _fails(machine, EngineMismatchError, "encoder.plan: reading the plan failed .Serialization assertion")
    assert len(machine.trt.deserialized) == 1


def test_host_code_in_plans_stays_off(machine) -> None:
    machine.trt.host_code_allowed = True
    _fails(machine, EngineMismatchError, "host code")
    assert machine.trt.deserialized == []


@pytest.mark.parametrize("what", ["deserialize", "context"])
def test_tensorrt_is_out_of_memory(machine, what: str) -> None:
    machine.trt.failures[what] = "Error Code 2: OutOfMemory (Requested size was 900000000 bytes.)"
    _fails(machine, OutOfMemoryError, "out of memory.*smaller --tile")


def test_memory_that_the_context_refuses_is_an_error_when_the_engine_is_opened(machine) -> None:
    # The call answers nothing.
    machine.trt.failures["memory"] = "Parameter check failed, condition: size >= deviceMemorySize"
    _fails(machine, EngineMismatchError, "encoder: giving the execution context its memory failed .Parameter check")
    # What was said before, of something else, is not what this call said.
    library = tensorrt_library.load_tensorrt("tensorrt", "e.engine")
    library.errors.append("something was said")
    taken: list[tuple[int, int]] = []
    context = SimpleNamespace(set_device_memory=lambda memory, size: taken.append((memory, size)))
    tensorrt_library.give_memory(library, context, 4096, 100, "e.engine")
    assert taken == [(4096, 100)]


@pytest.mark.kernels
@pytest.mark.parametrize("backend", BACKENDS)
def test_cuda_is_out_of_memory_wherever_it_happens(machine, backend: str) -> None:
    path = machine.engine()
    for total_bytes in range(50, 75_000, 9_000):
        machine.gpu.total_bytes = total_bytes
        _fails(machine, OutOfMemoryError, "the GPU is out of memory", path, cuda_backend=backend)


@pytest.mark.parametrize("name", ["cuMemAllocHost", "cuStreamCreate", "cuEventCreate"])
def test_cuda_fails_while_opening(machine, name: str) -> None:
    machine.gpu.fail[name] = "CUDA_ERROR_LAUNCH_FAILED"
    _fails(machine, EngineMismatchError, f"CUDA failed: {name} reports CUDA_ERROR_LAUNCH_FAILED.*nvidia-smi")


@pytest.mark.parametrize("what", ["address", "execute"])
def test_calls_that_answer_false(machine, photo: np.ndarray, what: str) -> None:
    with open_engine(machine.engine()) as engine:
        machine.trt.failures[what] = "Error Code 3: API Usage Error"
        for run in (lambda: engine.upscale(photo), lambda: engine.network("unet").run(np.zeros((1, 12, 16, 16)))):
            with pytest.raises(EngineMismatchError, match=r"failed \(Error Code 3: API Usage Error"):
                run()
            assert machine.gpu.idle(), "nothing may still be using the buffers"
        machine.trt.failures.clear()
        np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
    machine.assert_nothing_is_left()


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["cuMemcpyHtoDAsync", "cuEventSynchronize", "cuGraphLaunch", "cuStreamWaitEvent"])
def test_cuda_fails_while_running(machine, photo: np.ndarray, name: str) -> None:
    with open_engine(machine.engine()) as engine:
        engine.upscale(photo)
        machine.gpu.fail[name] = "CUDA_ERROR_LAUNCH_FAILED"
        with pytest.raises(EngineMismatchError, match=f"{name} reports CUDA_ERROR_LAUNCH_FAILED"):
            engine.upscale(photo)
        machine.gpu.fail.clear()
    machine.assert_nothing_is_left()


def test_tensors_that_are_not_the_manifests(machine) -> None:
    networks = list(read_manifest(machine.engine()).networks)
    output = dataclasses.replace(networks[1].output, dtype="float16")
    networks[1] = dataclasses.replace(networks[1], outputs=(output,))
    _fails(
        machine, EngineMismatchError, "unet has .*float32.*by the manifest", machine.engine(networks=tuple(networks))
    )


def test_a_precision_is_not_a_gpu_engines_to_choose(machine) -> None:
    with pytest.raises(UsageError, match="--precision"):
        open_engine(machine.engine(), precision="bf16")


def test_closing_twice_and_running_after(machine) -> None:
    engine = open_engine(machine.engine())
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="is closed"):
        engine.network("unet").run(np.zeros((1, 12, 16, 16), np.float32))


def test_the_command_says_it_in_one_line(upscale, photo_path: Path, tmp_path: Path, machine) -> None:
    machine.gpu.fail["cuInit"] = "CUDA_ERROR_NO_DEVICE"
    call = (photo_path, "-o", tmp_path / "out.png", "--device", "cuda:1")
    code, out, err = upscale(*call, engine=machine.engine())
    assert (code, out, err.count("\n"), (tmp_path / "out.png").exists()) == (3, "", 1, False)
    machine.gpu.fail.clear()
    assert upscale(*call, engine=machine.engine())[0] == 0 and machine.gpu.current == 1
    assert Image.open(tmp_path / "out.png").size == (142, 106)
