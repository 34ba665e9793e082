"""What the launches refuse, which kernels they choose, and the sizes of the plugin's."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from intsr.cuda.arrays import UNKNOWN_STREAM, DeviceArray, device_array
from intsr.errors import UsageError
from intsr.kernels.devices.emulated import EmulatedDevice
from intsr.kernels.launches import picture as plan_picture
from intsr.kernels.launches import sources
from intsr.kernels.launches.group_norm_plugin import (
    NUMBERS,
    SHARED_BYTES,
    SOURCE,
    WAYS,
    PluginNorm,
    plugin_launch,
    takes_shape,
)
from intsr.kernels.launches.parameters import KERNELS, PixelsParams, PluginParams

DEVICE = EmulatedDevice()
WHOLE = {"top": 0, "left": 0, "height": 6, "width": 9, "side": 16}


def foreign(array, **changes):
    """An object of another library over the same memory."""
    return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__ | changes)


def test_arrays_of_other_libraries_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    mine = DEVICE.upload(pixels)
    other = device_array(foreign(mine, strides=(27, 3, 1)), "x")
    assert (other.pointer, other.shape, other.dtype) == (mine.pointer, (6, 9, 3), np.uint8)
    plan = plan_picture.plan_extract(DEVICE, foreign(mine), **WHOLE)
    assert plan.output.shape == (1, 3, 16, 16)


def test_arrays_name_the_stream_they_are_written_in():
    """What is emulated is done when it returns; what another library writes is to be waited for there."""
    mine = DEVICE.empty((6, 9, 3), np.uint8)
    assert mine.__cuda_array_interface__["stream"] is None
    theirs = device_array(foreign(mine, stream=77), "x")
    assert theirs.__cuda_array_interface__["stream"] == 77
    without = {key: value for key, value in mine.__cuda_array_interface__.items() if key != "stream"}
    unknown = device_array(SimpleNamespace(__cuda_array_interface__=without | {"version": 2}), "x")
    assert unknown.stream == UNKNOWN_STREAM and unknown.__cuda_array_interface__["stream"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (3, 18, 1)}, "strides .3, 18, 1.; expected a contiguous array"),
        ({"typestr": "|i1"}, r"pixels: \(6, 9, 3\) int8"),
        ({"shape": (6, 27)}, "expected .any, any, 3. uint8"),
        ({"data": (4096 + 8, False)}, "between 16-byte blocks"),
        ({"data": (4096, True)}, "read-only"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    array = foreign(DeviceArray(4096, (6, 9, 3), np.dtype(np.uint8)), **change)
    with pytest.raises(UsageError, match=message):
        plan_picture.plan_extract(DEVICE, array, **WHOLE)


def test_an_object_without_device_memory_is_refused():
    with pytest.raises(UsageError, match="x: a ndarray without __cuda_array_interface__"):
        device_array(np.zeros(3), "x")


def test_tiles_outside_the_picture_are_refused():
    for wrong in ({"height": 7}, {"top": -1}, {"left": 6}, {"side": 12}):
        with pytest.raises(UsageError, match="tile"):
            plan_picture.plan_extract(DEVICE, DEVICE.empty((6, 9, 3), np.uint8), **WHOLE | wrong)
    out, tile = DEVICE.empty((3, 20, 20), np.float32), DEVICE.empty((1, 3, 16, 16), np.float16)
    weights = DEVICE.upload(np.ones(16, np.float32))
    with pytest.raises(UsageError, match="inside"):
        plan_picture.plan_accumulate(DEVICE, out, tile, weights, weights, top=5, left=0)


def test_parameters_name_every_field():
    with pytest.raises(TypeError, match="count"):
        PixelsParams(planes=0, out=0)


# The TensorRT plugin's launches

NORM = PluginNorm(32, 1e-6, True)
# Channels and sides of SD 2.1's norms at a 64x64 latent.
SIZES = [(320, 64), (640, 64), (960, 32), (1920, 32), (2560, 8), (1280, 16), (128, 512), (512, 64)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["linear", "last"])
def test_every_norm_of_the_full_model_has_a_launch(layout, way):
    for channels, side in SIZES:
        launch = plugin_launch((1, channels, side, side), NORM, layout, "codes", way)
        numbers = dict(zip(NUMBERS, launch.numbers, strict=True))
        assert launch.shared_bytes <= SHARED_BYTES and launch.block == 512
        assert min(launch.numbers) >= 0 and launch.kernel in KERNELS
        assert launch.grid[0] == {"block": 1, "cluster": 8, "shared": 4}[way]
        assert launch.cluster == (8 if way == "cluster" else 1)
        pieces = channels * side * side // 8 // launch.grid[1] // launch.grid[0]
        # Everything is held where it fits, else as much as there is room for.
        assert numbers["held"] == pieces or launch.shared_bytes > SHARED_BYTES - 16
        assert np.int32(numbers["epsilon_bits"]).view(np.float32) == np.float32(1e-6)


def test_a_unets_norm_is_read_once_by_a_cluster():
    held = {way: plugin_launch((1, 320, 64, 64), NORM, "linear", "codes", way).numbers[4] for way in WAYS}
    assert held["cluster"] * 8 >= 320 // 32 * 64 * 64 // 8 > held["block"]


@pytest.mark.parametrize(
    ("layout", "blocks"), [("linear", (32, 32, 128, 128, 256, 256)), ("last", (8, 32, 32, 128, 64, 256))]
)
def test_the_documented_share_of_a_gpu_that_a_norm_uses(layout, blocks):
    grids = [
        [math.prod(plugin_launch((1, c, s, s), NORM, layout, "codes", way).grid) for c, s in SIZES]
        for way in ("block", "shared", "cluster")
    ]
    assert tuple(end(grid) for grid in grids for end in (min, max)) == blocks
    document = (sources.FOLDER.resolve().parents[1] / "docs" / "inside" / "gpu.md").read_text(encoding="utf-8")
    ends = zip(blocks[::2], blocks[1::2], strict=True)
    cells = [str(low) if low == high else f"{low} to {high}" for low, high in ends]
    name = {"linear": "NCHW", "last": "NHWC"}[layout]
    assert f"| {name} | {' | '.join(cells)} |" in document


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((1, 24, 8, 8), "last", r"C % 16 and"),
        ((1, 320, 3, 3), "linear", r"H W % 8"),
        ((1, 330, 8, 8), "linear", "groups 0"),
        ((1, 320, 64), "linear", "shape"),
        ((1, 320, 8, 8), "chw32", "'chw32'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, layout, words):
    norm = PluginNorm(4 if shape[1] == 24 else 32, 1e-6, True)
    with pytest.raises(UsageError, match=words):
        plugin_launch(shape, norm, layout, "codes")


def test_numbers_out_of_range_are_refused():
    for arguments in ((0, 1e-6, True), (32, 0.0, True), (32, float("inf"), True)):
        with pytest.raises(UsageError, match="positive numbers"):
            PluginNorm(*arguments)
    for ends in ((-129, 127), (3, 3), (0, 128)):
        with pytest.raises(UsageError, match="within int8"):
            PluginNorm(32, 1e-6, True, *ends)
    assert takes_shape((2, 64, 4, 2), 32) and not takes_shape((2, 64, 0, 2), 32)


def test_the_kernels_parameters_are_inputs_numbers_output_in_that_order():
    """As tensorrt.plugin passes them."""
    text = sources.cuda_path(SOURCE).read_text()
    found = re.search(r"cluster name\(\s*\\?\s*((?:.|\n)*?)\) \{", text)
    assert found is not None
    names = [part.split()[-1].lstrip("*") for part in found[1].replace("\\", " ").split(",")]
    assert names == [name for name, *_ in PluginParams._fields_]
    assert tuple(names[5:-1]) == NUMBERS and names[-1] == "out"
