"""Types check themselves, and JSON becomes a type or an error."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import UsageError
from intsr.types import MAX_BITS, MIN_BITS, Bits, ModelSpec, TensorInfo, TileEntry, dataclass_from_mapping

WIDTHS = st.integers(MIN_BITS, MAX_BITS)
SPEC = ModelSpec("m", 999, 0.00466, 0.18215, 4, "lanczos", 64)


@given(weights=WIDTHS, activations=WIDTHS)
def test_bits_are_written_as_they_are_read(weights, activations):
    bits = Bits.parse(f"w{weights}a{activations}")
    assert (bits.weights, bits.activations, bits.quantized) == (weights, activations, True)
    assert Bits.parse(str(bits)) == bits


def test_full_precision():
    bits = Bits.parse("fp")
    assert (bits.weights, bits.activations, bits.quantized, str(bits)) == (None, None, False, "fp")


@pytest.mark.parametrize(
    "text", ["w9a9", "w1a8", "w8a1", "w8", "a8", "8", "", "W8A8", "w8a8 ", "w8a8\n", "w08a8", "w-8a8", "w٨a8", "fp16"]
)
def test_other_bits_are_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"--bits: .*; expected wXaY .*; for example --bits w8a8") as caught:
        Bits.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("weights", "activations"), [(9, 8), (8, 1), (None, 8), (8, None)])
def test_bits_check_themselves(weights, activations):
    with pytest.raises(ValueError, match="bits"):
        Bits(weights, activations)


@pytest.mark.parametrize(
    "change",
    [
        {"alpha_bar": 0.0},
        {"alpha_bar": 1.0},
        {"alpha_bar": float("nan")},
        {"resize_filter": "nearest"},
        {"upscale_factor": 0},
        {"size_multiple_px": 0},
        {"latent_scaling_factor": 0.0},
    ],
)
def test_model_spec_checks_itself(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SPEC, **change)


def test_shapes_from_json_become_tuples():
    info = dataclass_from_mapping(TensorInfo, {"name": "x", "shape": [1, 3], "dtype": "float32"}, "here")
    assert info == TensorInfo("x", (1, 3), "float32")
    assert hash(info) == hash(TensorInfo("x", (1, 3), "float32"))


def test_types_do_not_change():
    with pytest.raises(FrozenInstanceError):
        SPEC.timestep = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "shape": [1], "dtype": "f", "axis": 1, "b": 2}, "here: unknown keys axis, b; expected only"),
        ({"name": "x", "shape": [1]}, "here: .*dtype"),
        ({"name": "x", "shape": 1, "dtype": "f"}, "here: .*expected a valid TensorInfo"),
    ],
)
def test_mappings_that_do_not_fit(values, message):
    with pytest.raises(UsageError, match=message):
        dataclass_from_mapping(TensorInfo, values, "here")


def test_manifest_checks_itself(manifest):
    with pytest.raises(ValueError, match=r"networks are \['encoder', 'unet'\]"):
        replace(manifest, networks=manifest.networks[:2])
    with pytest.raises(ValueError, match="networks are"):
        replace(manifest, networks=manifest.networks[::-1])
    for overlap_px in (-1, 16):
        with pytest.raises(ValueError, match="overlap_px"):
            replace(manifest, overlap_px=overlap_px)
    with pytest.raises(ValueError, match="resize_filter"):
        replace(manifest, resize_filter="nearest")


def _with_tiles(manifest, *sizes):
    return replace(manifest, tiles=tuple(TileEntry(size, 2, manifest.networks) for size in sizes))


def test_a_manifest_at_another_tile(manifest):
    assert manifest.tile_sizes == (16,)
    several = _with_tiles(manifest, 8, 32)
    assert several.tile_sizes == (32, 16, 8)
    assert several.at_tile(None) is several.at_tile(16) is several
    small = several.at_tile(8)
    assert (small.tile_px, small.overlap_px, small.tile_sizes) == (8, 2, (32, 16, 8))
    assert set(small.tiles) == {TileEntry(16, 4, manifest.networks), TileEntry(32, 2, manifest.networks)}
    assert small.at_tile(16).overlap_px == manifest.overlap_px
    with pytest.raises(UsageError) as caught:
        several.at_tile(96)
    expected = "--tile: 96 pixels; expected 32 or 16 or 8, which the engine holds; compile it with --tile 96"
    assert str(caught.value) == expected


def test_tiles_check_themselves(manifest):
    for sizes in ((16,), (8, 8)):
        with pytest.raises(ValueError, match="one size twice"):
            _with_tiles(manifest, *sizes)
    with pytest.raises(ValueError, match="overlap_px 2 is not below tile_px 2"):
        _with_tiles(manifest, 2)
    with pytest.raises(ValueError, match="networks are"):
        TileEntry(8, 2, manifest.networks[::-1])
