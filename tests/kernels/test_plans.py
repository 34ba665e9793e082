"""What the plans refuse, and which kernels they choose."""

from types import SimpleNamespace

import numpy as np
import pytest

from intsr.cuda.arrays import UNKNOWN_STREAM, DeviceArray, device_array
from intsr.errors import UsageError
from intsr.kernels.devices.emulated import EmulatedDevice
from intsr.kernels.launches import network as plan_network
from intsr.kernels.launches import picture as plan_picture
from intsr.kernels.launches.parameters import PixelsParams
from intsr.kernels.quantizer import QuantParams
from intsr.kernels.reference.group_norm import NormQuantize
from intsr.kernels.reference.int8 import int8_product

DEVICE = EmulatedDevice()


def foreign(array, **changes):
    """An object of another library over the same memory."""
    return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__ | changes)


def test_arrays_of_other_libraries_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    mine = DEVICE.upload(pixels)
    other = device_array(foreign(mine, strides=(27, 3, 1)), "x")
    assert (other.pointer, other.shape, other.dtype) == (mine.pointer, (6, 9, 3), np.uint8)
    plan = plan_picture.plan_extract(DEVICE, foreign(mine), 0, 0, 6, 9, 16)
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
        plan_picture.plan_extract(DEVICE, array, 0, 0, 6, 9, 16)


def test_an_object_without_device_memory_is_refused():
    with pytest.raises(UsageError, match="x: a ndarray without __cuda_array_interface__"):
        device_array(np.zeros(3), "x")


@pytest.mark.parametrize("place", [(0, 0, 7, 9, 16), (-1, 0, 4, 4, 16), (0, 6, 4, 4, 16), (0, 0, 4, 4, 12)])
def test_tiles_outside_the_picture_are_refused(place):
    with pytest.raises(UsageError, match="tile"):
        plan_picture.plan_extract(DEVICE, DEVICE.empty((6, 9, 3), np.uint8), *place)


def test_a_tile_that_leaves_the_picture_is_not_accumulated():
    out, tile = DEVICE.empty((3, 20, 20), np.float32), DEVICE.empty((1, 3, 16, 16), np.float16)
    weights = np.ones(16, np.float32)
    with pytest.raises(UsageError, match="inside"):
        plan_picture.plan_accumulate(DEVICE, out, tile, weights, weights, 5, 0)


def test_parameters_name_every_field():
    with pytest.raises(TypeError, match="count"):
        PixelsParams(planes=0, out=0)


# Multiprocessors, shared memory of a block, compute capability.
A100, ADA, HOPPER, RTX_50 = (108, 163, (8, 0)), (128, 99, (8, 9)), (132, 227, (9, 0)), (170, 99, (12, 0))


@pytest.mark.parametrize(
    ("gpu", "pictures", "side", "channels", "groups", "expected"),
    [
        # Held nowhere.
        (ADA, 1, 64, 320, 32, ("two-pass", 1)),
        (HOPPER, 1, 512, 128, 32, ("two-pass", 1)),
        # Eight slices: a cluster of two would hold them, and leave 116 multiprocessors without work.
        (HOPPER, 1, 64, 320, 32, ("cluster", 8)),
        (RTX_50, 1, 64, 320, 32, ("cluster", 8)),
        # The smallest that gives every multiprocessor a block.
        (HOPPER, 9, 64, 320, 32, ("cluster", 2)),
        (HOPPER, 5, 64, 320, 32, ("cluster", 4)),
        (HOPPER, 5, 32, 1280, 32, ("block", 1)),
        # Not all of them, but more than half; and less than half.
        (HOPPER, 1, 256, 128, 32, ("cluster", 8)),
        (HOPPER, 1, 256, 64, 8, ("two-pass", 1)),
        # It fits, in 16 blocks of 108; so little that these are soon done.
        (A100, 1, 32, 640, 32, ("two-pass", 1)),
        (A100, 1, 8, 2560, 32, ("block", 1)),
        (A100, 4, 32, 640, 32, ("block", 1)),
    ],
)
def test_the_norm_is_held_where_it_fits_and_fills_the_gpu(gpu, pictures, side, channels, groups, expected):
    multiprocessors, shared_kib, capability = gpu
    device = EmulatedDevice(capability, shared_kib * 1024)
    device.multiprocessors = multiprocessors
    assert plan_network.choose_norm_way(device, pictures, side * side, channels, groups) == expected


def test_pictures_share_the_multiprocessors():
    """The plan asks for all its pictures together."""
    norm = NormQuantize(
        *(np.ones(32, np.float32),) * 2, 4, 1e-5, True, *(np.ones(32, np.float32),) * 2, QuantParams(1, 0, 8)
    )
    ways = [
        plan_network.plan_group_norm_quantize(DEVICE, DEVICE.empty((n, 8, 8, 32), np.float16), norm).launches[0]
        for n in (1, 2)
    ]
    # Six multiprocessors, four slices a picture.
    assert [(way.kernel, way.cluster) for way in ways] == [("group_norm_cluster", 2), ("group_norm_block", 1)]


def test_a_norm_that_does_not_fit_a_block_is_refused():
    norm = NormQuantize(
        *(np.ones(32, np.float32),) * 2, 4, 1e-5, True, *(np.ones(32, np.float32),) * 2, QuantParams(1, 0, 8)
    )
    x = DEVICE.empty((1, 200, 200, 32), np.float16)
    with pytest.raises(UsageError, match="way: 'block'; expected one of"):
        plan_network.plan_group_norm_quantize(DEVICE, x, norm, "block")


def test_channels_that_no_vector_holds_are_refused():
    ones = np.ones(20, np.float32)
    with pytest.raises(UsageError, match="multiple of 8"):
        NormQuantize(ones, ones, 4, 1e-5, True, ones, ones, QuantParams(1, 0, 8))
    with pytest.raises(UsageError, match="multiples of 16 and 8; pad the weights"):
        int8_product(np.ones((8, 20), np.int8), np.ones(8, np.float32), np.ones(8, np.float32), QuantParams(1, 0, 8))


def test_large_products_take_large_tiles():
    product = int8_product(
        np.ones((256, 64), np.int8), np.ones(256, np.float32), np.ones(256, np.float32), QuantParams(1, 0, 8)
    )
    names = [
        plan_network.plan_int8_gemm(DEVICE, DEVICE.empty((rows, 64), np.int8), product).launches[0].kernel
        for rows in (16, 4096)
    ]
    # The emulated device has six multiprocessors: 2 blocks of 128 leave some without work, 64 do not.
    assert names == ["int8_gemm_64", "int8_gemm_128"]
    wide = EmulatedDevice()
    wide.multiprocessors = 132
    assert (
        plan_network.plan_int8_gemm(wide, wide.empty((512, 64), np.int8), product).launches[0].kernel
        == "int8_gemm_64"
    )
