"""The GPU runtime over a simulated GPU: results, order, memory, graphs, arrays of other libraries."""

from __future__ import annotations

import warnings
from collections import deque

import numpy as np
import pytest
from networks import bicubic

from intsr.cuda.arrays import UNKNOWN_STREAM, DeviceArray, device_array
from intsr.cuda.graphs import MAX_GRAPHS
from intsr.errors import EngineMismatchError, UsageError
from intsr.runtime.engine import open_engine
from intsr.runtime.upscaler import STAGES

BACKENDS = ("cuda-python", "pycuda")
# Their engines take float32: see test_device_picture.py for those whose pictures stay on the device.
pytestmark = pytest.mark.filterwarnings("ignore:.* blends its pictures on the CPU:RuntimeWarning")


@pytest.mark.parametrize(
    ("target", "backend"), [("tensorrt", "cuda-python"), ("tensorrt-rtx", "cuda-python"), ("tensorrt", "pycuda")]
)
def test_many_tiles_come_out_right_and_in_order(machine, photo: np.ndarray, target: str, backend: str) -> None:
    with open_engine(machine.engine(target), cuda_backend=backend) as engine:
        assert engine.precision == "f16"
        for _ in range(2):
            result = engine.upscale_with_timings(photo)
            np.testing.assert_array_equal(result.image, bicubic(photo))
        assert result.tiles == 30
        assert set(result.stages_ms) == set(STAGES) and result.stages_ms["unet"] >= 30
        assert result.transfers_ms is not None and result.transfers_ms >= 60
    machine.assert_nothing_is_left()


def test_one_tile_two_tiles_odd_numbers(machine) -> None:
    with open_engine(machine.engine()) as engine:
        for size in ((16, 16), (16, 28), (5, 3), (40, 16)):
            pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
            np.testing.assert_array_equal(engine.upscale(pixels), bicubic(pixels))


def test_batches_of_tiles_the_last_filled_up(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine(batch=4)) as engine:
        np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
        assert sum(name.endswith("decoder") for name in machine.gpu.log) == 8  # 30 tiles


@pytest.mark.kernels
def test_other_pictures_in_the_middle_of_one(machine, photo: np.ndarray) -> None:
    # Its tiles that are on the device then have buffers of their own.
    with open_engine(machine.engine()) as engine:
        x = np.random.default_rng(0).uniform(-1, 1, engine.network("encoder").input.shape).astype(np.float32)
        for _ in range(2):
            rows, others = engine.upscale_rows(photo), engine.upscale_rows(photo[::-1])
            first, other = next(rows), next(others)
            np.testing.assert_array_equal(engine.upscale(photo[:, ::-1]), bicubic(photo)[:, ::-1])
            np.testing.assert_allclose(engine.run_pipeline(x), x, atol=1e-6)
            np.testing.assert_array_equal(np.concatenate([first, *rows]), bicubic(photo))
            np.testing.assert_array_equal(np.concatenate([other, *others]), bicubic(photo[::-1]))
        assert machine.gpu.calls["cuMemAllocHost"] == 12, "kept for the next ones"
    machine.assert_nothing_is_left()


def test_float16_plans(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine(dtype="float16")) as engine:
        difference = engine.upscale(photo).astype(int) - bicubic(photo)
        assert np.abs(difference).max() <= 1


def test_networks_run_in_order_and_copies_come_between(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine()) as engine:
        engine.upscale(photo)
        computed = [name.removeprefix("graph ") for name in machine.gpu.log if name not in ("up", "down")]
        assert computed == ["encoder", "unet", "decoder"] * 30
        # The next tile comes up before the one before goes down.
        copies = [name for name in machine.gpu.log if name in ("up", "down")]
        assert copies == ["up", *["up", "down"] * 29, "down"]


def test_one_arena_as_large_as_the_largest_need(machine) -> None:
    with open_engine(machine.engine()) as engine:
        assert [context.name for context in machine.trt.contexts] == ["encoder", "unet", "decoder"]
        ((address, size_bytes),) = {context.arena for context in machine.trt.contexts}
        assert size_bytes == 3000 == len(machine.gpu.device[address])
        assert engine.backend.device_bytes() == sum(map(len, machine.gpu.device.values())) > 3000


def test_a_graph_is_captured_once_and_replayed(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine()) as engine:
        engine.upscale(photo)
        # Two slots of buffers: the encoder's input differs, the UNet's buffers do not, the decoder's output does.
        captures = {"encoder": 2, "unet": 1, "decoder": 2}
        assert machine.gpu.calls["cuStreamBeginCapture"] == sum(captures.values())
        for name, count in captures.items():
            # A key runs as it is twice: once to see it, once more before it is captured.
            assert machine.gpu.log.count(name) == 2 * count
            assert machine.gpu.log.count(f"graph {name}") == 30 - 2 * count
        engine.upscale(photo)
        assert machine.gpu.calls["cuStreamBeginCapture"] == sum(captures.values())
        assert machine.gpu.log.count("graph unet") == 58
        assert engine.backend.uses_graphs()


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(machine, photo: np.ndarray) -> None:
    machine.trt.failures["capture"] = "operation not permitted when stream is capturing"
    with open_engine(machine.engine()) as engine:
        with pytest.warns(RuntimeWarning, match=r"without a CUDA graph.*operation not permitted") as caught:
            np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
        assert len(caught) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(engine.upscale(photo), bicubic(photo))
        assert not engine.backend.uses_graphs()
        assert machine.gpu.capturing == {}
    machine.assert_nothing_is_left()


def test_pycuda_retains_the_primary_context_and_launches_kernels_one_by_one(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine(), cuda_backend="pycuda") as engine:
        assert machine.gpu.calls["retain_primary_context"] == 1
        assert len(machine.pycuda.stack) == 1
        engine.upscale(photo)
        assert not engine.backend.uses_graphs()
        assert len(machine.pycuda.stack) == 1, "pushed once a thread, not once a call"
    assert machine.pycuda.stack == [] and machine.gpu.calls["detach"] == 1
    assert not any(name.startswith("graph") for name in machine.gpu.log)


def test_buffers_are_made_once(machine, photo: np.ndarray) -> None:
    with open_engine(machine.engine()) as engine:
        pinned, device = dict(machine.gpu.host_memory), set(machine.gpu.device)
        assert len(pinned) == 4
        for _ in range(3):
            engine.upscale(photo)
        assert machine.gpu.host_memory.keys() == pinned.keys() and set(machine.gpu.device) == device
        assert machine.gpu.calls["cuMemAllocHost"] == 4
        before = machine.gpu.calls["cuMemAlloc"]
        engine.upscale(photo)
        assert machine.gpu.calls["cuMemAlloc"] == before


def test_single_networks_take_and_give_host_arrays(machine) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    with open_engine(machine.engine()) as engine:
        first = engine.run_pipeline(x)
        np.testing.assert_array_equal(first, x)
        engine.run_pipeline(np.zeros_like(x))
        np.testing.assert_array_equal(first, x, "the caller owns it")
        with pytest.raises(ValueError, match="has shape"):
            engine.network("unet").run(x)
        assert machine.gpu.idle()


def test_outputs_stay_what_they_were(machine) -> None:
    inputs = np.random.default_rng(0).uniform(-1, 1, (5, 1, 3, 32, 32)).astype(np.float32)
    with open_engine(machine.engine()) as engine:
        outputs = list(engine.backend.tile_pipeline.run_batches(iter(inputs), lambda name, ms: None))
    np.testing.assert_array_equal(outputs, inputs, "each is the caller's own, however many come after it")


def _device_array(machine, value: np.ndarray, stream: int = 7) -> DeviceArray:
    machine.gpu.streams.setdefault(stream, deque())
    address = machine.gpu.alloc(value.nbytes)
    array = DeviceArray(address, value.shape, value.dtype, stream=stream)
    # The other library is still writing it: what reads it must wait for that stream.
    machine.gpu.put(stream, "", lambda: machine.gpu.tensor(address, value.shape, value.dtype).__setitem__(..., value))
    return array


LATENT = np.random.default_rng(0).uniform(-1, 1, (1, 12, 16, 16)).astype(np.float32)


def test_arrays_of_other_libraries_in_and_out(machine) -> None:
    with open_engine(machine.engine()) as engine:
        unet = engine.network("unet")
        x, out = _device_array(machine, LATENT), _device_array(machine, np.zeros_like(LATENT), stream=9)
        assert unet.run_on_device(x, out) is out
        unet.synchronize()
        np.testing.assert_array_equal(machine.gpu.tensor(out.pointer, LATENT.shape, "float32"), LATENT)
        own = unet.run_on_device(x)
        interface = own.__cuda_array_interface__
        assert (interface["shape"], interface["typestr"], interface["version"]) == (LATENT.shape, "<f4", 3)
        unet.synchronize()
        np.testing.assert_array_equal(machine.gpu.tensor(interface["data"][0], LATENT.shape, "float32"), LATENT)
        for address in (x.pointer, out.pointer):
            del machine.gpu.device[address]
    for stream in (7, 9):
        del machine.gpu.streams[stream]
    machine.assert_nothing_is_left()


@pytest.mark.kernels
def test_graphs_of_many_addresses_are_bounded_and_none_is_made_for_what_comes_once(machine) -> None:
    with open_engine(machine.engine()) as engine:
        arrays = [_device_array(machine, LATENT) for _ in range(2 * MAX_GRAPHS)]
        for array in arrays:
            engine.network("unet").run_on_device(array)
        assert machine.gpu.calls["cuStreamBeginCapture"] == 0
        for array in arrays:
            engine.network("unet").run_on_device(array)
        assert len(machine.gpu.graphs) == MAX_GRAPHS


class _Foreign:
    """As PyTorch's tensors by default: version 2, no word of a stream."""

    def __init__(self, pointer: int = 4096, **changes: object) -> None:
        interface = {"shape": LATENT.shape, "typestr": "<f4", "data": (pointer, False), "strides": None, "version": 2}
        self.__cuda_array_interface__ = {**interface, **changes}


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_that_name_no_stream_are_waited_for_whatever_stream_they_are_written_in(machine, backend: str) -> None:
    with open_engine(machine.engine(), cuda_backend=backend) as engine:
        unet = engine.network("unet")
        x = _Foreign(_device_array(machine, LATENT, stream=7).pointer)
        # Whoever wrote into it before must be through with it, too.
        old = _device_array(machine, np.zeros_like(LATENT), stream=9)
        unet.run_on_device(x, _Foreign(old.pointer))
        unet.synchronize()
        assert not machine.gpu.streams[9], "what is written late would be over the result"
        np.testing.assert_array_equal(machine.gpu.tensor(old.pointer, LATENT.shape, "float32"), LATENT)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3), "without __cuda_array_interface__"),
        (_Foreign(shape=(1, 12, 16, 8)), r"\(1, 12, 16, 8\) float32; expected \(1, 12, 16, 16\)"),
        (_Foreign(typestr="<f2"), "float16; expected"),
        (_Foreign(strides=(12288, 1024, 4, 64)), "contiguous"),
    ],
)
def test_arrays_that_do_not_fit(machine, array: object, words: str) -> None:
    with open_engine(machine.engine()) as engine, pytest.raises(UsageError, match=words):
        engine.network("unet").run_on_device(array)


def test_strides_of_single_elements_mean_nothing_and_read_only_is_no_output() -> None:
    shape, strides = (1, 12, 16, 16), (1, 1024, 64, 4)
    assert device_array(_Foreign(strides=strides), "x", "float32", shape).stream == UNKNOWN_STREAM
    # A maker that says None says that there is nothing to wait for.
    assert device_array(_Foreign(stream=None), "x").stream is None
    assert device_array(_Foreign(stream=2), "x").stream == 2
    with pytest.raises(UsageError, match="read-only"):
        device_array(_Foreign(data=(4096, True)), "x")
    assert device_array(_Foreign(data=(4096, True)), "x", writable=False).pointer == 4096


def test_layer_times(machine) -> None:
    x = np.zeros((1, 3, 32, 32), np.float32)
    with open_engine(machine.engine(), profile=True) as engine:
        for _ in range(2):
            engine.run_pipeline(x)
        times = engine.backend.layer_times_ms()["encoder"]
        assert [(time.name, time.ms) for time in times] == [("encoder_conv", 1.5), ("encoder_norm", 0.5)]
        assert machine.gpu.calls["cuStreamBeginCapture"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("asked", "device"),
    [
        *((asked, "cuda:0 GeForce One (sm89)") for asked in (None, "cuda", "cuda:0", "geforce one")),
        *((asked, "cuda:1 GeForce Two (sm89)") for asked in ("cuda:1", "Two")),
    ],
)
def test_which_gpu(machine, backend: str, asked: str | None, device: str) -> None:
    with open_engine(machine.engine(), device=asked, cuda_backend=backend) as engine:
        assert engine.backend.device == device and machine.gpu.current == int("Two" in device)


@pytest.mark.parametrize("asked", ["cuda:2", "cpu", "Titan"])
def test_no_such_gpu_lists_those_there(machine, asked: str) -> None:
    with pytest.raises(EngineMismatchError, match=f"no GPU is '{asked}'.*cuda:0 GeForce One.*cuda:1 GeForce Two"):
        open_engine(machine.engine(), device=asked)
