"""What an inference takes, on graphs small enough to count by hand, and on one that is measured."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from intsr.memory import peak_resident_bytes, resident_bytes, restart_peak
from intsr.runtime.backends.openvino.memory import Operation, inference_bytes, largest_live_bytes, stored_elements
from intsr.runtime.backends.protocol import activation_bytes_from_network

INPUT = Operation("x", "Input", 0, (), (10,))
WEIGHT = Operation("w", "Const", 1, (), (10_000,))


def _reads(name: str, order: int, *inputs: str, size: int = 0, kind: str = "Convolution") -> Operation:
    return Operation(name, kind, order, tuple((source, 0) for source in inputs), (size,))


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    chain = [
        INPUT,
        WEIGHT,
        _reads("a", 2, "x", "w", size=20),
        _reads("b", 3, "a", size=5),
        _reads("y", 4, "b", size=7),
    ]
    assert largest_live_bytes(chain) == 10 + 20
    assert largest_live_bytes(chain[::-1]) == 30, "the order of running is what counts"


def test_a_skip_lives_until_it_is_read() -> None:
    chain = [INPUT, _reads("a", 1, "x", size=20), _reads("b", 2, "a", size=30), _reads("y", 3, "b", size=4)]
    assert largest_live_bytes(chain) == 50
    assert largest_live_bytes([*chain[:-1], _reads("y", 3, "b", "x", size=4)]) == 60


def test_a_reshape_takes_no_memory_and_keeps_its_input_alive() -> None:
    chain = [
        INPUT,
        _reads("r", 1, "x", size=10, kind="Reshape"),
        _reads("a", 2, "r", size=100),
        _reads("y", 3, "a", "r", size=1),
    ]
    assert largest_live_bytes(chain) == 10 + 100 + 1
    weights = [WEIGHT, _reads("flat", 2, "w", size=10_000, kind="Reshape"), _reads("y", 3, "flat", size=8)]
    assert largest_live_bytes(weights) == 8


def test_every_output_counts_as_long_as_it_is_needed() -> None:
    split = Operation("split", "Split", 1, (("x", 0),), (4, 6))
    later = Operation("late", "Convolution", 3, (("split", 1), ("a", 0)), (1,))
    assert largest_live_bytes([INPUT, split, _reads("a", 2, "split", size=50), later]) == 4 + 6 + 50
    # Without a reader it is made all the same.
    assert largest_live_bytes([INPUT, split]) == 10 + 4 + 6


def test_nothing() -> None:
    assert largest_live_bytes([]) == 0


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((1, 60, 8, 8), "abcd", 60 * 64),
        ((1, 60, 8, 8), "acdb", 60 * 64),
        ((1, 60, 8, 8), "aBcd16b", 64 * 64),
        ((60, 20, 3, 3), "ABcd16b16a", 64 * 32 * 9),
        ((), "", 1),
    ],
)
def test_blocked_layouts_are_filled_up(shape: tuple[int, ...], layout: str, expected: int) -> None:
    assert stored_elements(shape, layout) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is measured with Linux's /proc")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_estimate_is_above_what_is_measured_and_not_by_far(precision: str) -> None:
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    channels, side = 32, 640
    rng = np.random.default_rng(0)
    x = value = ops.parameter([1, 3, side, side], np.float32)
    for count in (3, channels, channels):
        kernel = rng.normal(size=(channels, count, 3, 3)).astype(np.float32)
        value = ops.convolution(ops.relu(value), ops.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([ops.reduce_mean(value, ops.constant([1]), True)], [x])
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    estimate = inference_bytes(compiled.get_runtime_model(), side * side * 4)
    request = compiled.create_infer_request()
    picture = np.ones((1, 3, side, side), np.float32)
    before = resident_bytes()
    restart_peak()
    request.infer({0: picture}, share_inputs=True)
    measured = peak_resident_bytes() - before
    assert measured > (40e6 if precision == "f32" else 20e6)
    assert measured <= estimate <= 1.5 * measured


def test_engines_tell_what_their_networks_take(make_engine) -> None:  # type: ignore[no-untyped-def]
    from intsr.runtime.engine import open_engine

    with open_engine(make_engine("cpu")) as engine:
        for network in engine.networks:
            largest = max(np.prod(network.input.shape), np.prod(network.output.shape)) * 4
            assert largest < (activation_bytes_from_network(network) or 0) < 10 * largest
    with open_engine(make_engine("onnxruntime")) as engine:
        assert activation_bytes_from_network(engine.network("unet")) is None
